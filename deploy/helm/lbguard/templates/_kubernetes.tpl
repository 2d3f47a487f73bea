{{/* Not empty if lbguard follows objects of the Kubernetes API. */}}
{{- define "lbguard.followsObjects" -}}
{{- if and .Values.guard.enabled (eq .Values.settings.source "kubernetes") -}}yes{{- end -}}
{{- end }}

{{/* The service account that may read the objects. */}}
{{- define "lbguard.serviceAccount" -}}
{{- default (include "lbguard.fullname" .) .Values.rbac.serviceAccount -}}
{{- end }}

{{/* The fields of the pod that give it the chart's own service account; empty: it has one of its own, or needs none. */}}
{{- define "lbguard.podAccount" -}}
{{- if and (include "lbguard.followsObjects" .) (not .Values.rbac.serviceAccount) -}}
serviceAccountName: {{ include "lbguard.serviceAccount" . }}
automountServiceAccountToken: true
{{- end -}}
{{- end }}

{{/* The same in a patch that takes it away: the API server keeps the older name of the field too. */}}
{{- define "lbguard.podAccountRemoved" -}}
{{- if include "lbguard.podAccount" . -}}
serviceAccountName: null
serviceAccount: null
automountServiceAccountToken: null
{{- end -}}
{{- end }}

{{/* Refuse settings of source kubernetes that contradict each other. lbguard itself checks whether VIPs overlap. */}}
{{- define "lbguard.checkKubernetes" -}}
{{- $services := get . "kubernetes.services" -}}
{{- $gateway := get . "kubernetes.gateway" -}}
{{- $groups := get . "kubernetes.distribution_groups" -}}
{{- if and (eq (get . "source") "kubernetes") (not $services) (not $gateway) -}}
{{- fail "settings.kubernetes.services: needed with settings.source kubernetes; allowed: names of Services, or settings.kubernetes.gateway" -}}
{{- end -}}
{{- if and $services $gateway -}}
{{- fail (printf "settings.kubernetes.gateway = %s: not together with settings.kubernetes.services" $gateway) -}}
{{- end -}}
{{- if and $groups (not $gateway) -}}
{{- fail (printf "settings.kubernetes.gateway: needed for settings.kubernetes.distribution_groups %s" $groups) -}}
{{- end -}}
{{- if and (get . "kubernetes.url") (get . "kubernetes.kubeconfig") -}}
{{- fail (printf "settings.kubernetes.url = %s: not together with settings.kubernetes.kubeconfig" (get . "kubernetes.url")) -}}
{{- end -}}
{{- $streams := list -}}
{{- range $name := list "kubernetes.services" "kubernetes.distribution_groups" -}}
{{- $text := get $ $name -}}
{{- if and $text (ne $text "?") -}}
{{- $streams = splitList "," $text -}}
{{- if lt (len (uniq $streams)) (len $streams) -}}
{{- fail (printf "settings.%s = %s: a stream is named twice; allowed: each name once" $name $text) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $vips := get . "kubernetes.vips" -}}
{{- $owners := dict -}}
{{- if and $vips (ne $vips "?") -}}
{{- range $item := splitList "," $vips -}}
{{- $stream := first (splitList "=" (trim $item)) -}}
{{- $vip := last (splitList "=" (trim $item)) -}}
{{- if and $streams (not (has $stream $streams)) -}}
{{- fail (printf "settings.kubernetes.vips = %s: %s is none of the streams; allowed: VIPs of %s" $vips $stream (join ", " $streams)) -}}
{{- end -}}
{{- if ne (default $stream (get $owners $vip)) $stream -}}
{{- fail (printf "settings.kubernetes.vips = %s: streams %s and %s share VIP %s; allowed: each VIP in one stream" $vips (get $owners $vip) $stream $vip) -}}
{{- end -}}
{{- $_ := set $owners $vip $stream -}}
{{- end -}}
{{- end -}}
{{- end }}
