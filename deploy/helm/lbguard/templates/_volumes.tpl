{{/* Whether a component mounts something over a path; takes (dict "root" . "component" "guard" "path" "/x/y"). */}}
{{- define "lbguard.isMounted" -}}
{{- $path := printf "%s/" (clean .path) -}}
{{- $mounted := "" -}}
{{- range (get .root.Values .component).extraVolumeMounts -}}
{{- if hasPrefix (printf "%s/" (clean .mountPath)) $path }}{{ $mounted = "yes" }}{{ end -}}
{{- end -}}
{{- $mounted -}}
{{- end }}

{{/* The size in bytes of the volume for recordings; empty: nothing is recorded, or there is a volume already. */}}
{{- define "lbguard.recordingVolume" -}}
{{- with .Values.settings.recording -}}
{{- if and .enabled (not (include "lbguard.isMounted" (dict "root" $ "component" "guard" "path" .directory))) -}}
{{- /* A pod that fills its volume is evicted: two files more than there ever are. */ -}}
{{- mul .max_file (add .max_files 2) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Whether the device for parking is mounted. */}}
{{- define "lbguard.parks" -}}
{{- if and .Values.settings.parking.enabled (eq .Values.settings.mode "enforce") }}yes{{ end -}}
{{- end }}

{{/*
Refuse sockets of others that no volume leads to: lbguard would wait for them for ever. Takes (dict "root" . "component"
"guard").
*/}}
{{- define "lbguard.checkSockets" -}}
{{- $given := . -}}
{{- $settings := .root.Values.settings -}}
{{- $sockets := dict -}}
{{- if eq .component "guard" -}}
{{- $_ := set $sockets "availability.socket" $settings.availability.socket -}}
{{- $_ := set $sockets "verdicts.spiffe_socket" $settings.verdicts.spiffe_socket -}}
{{- if or (eq $settings.source "nsp") $settings.availability.socket -}}
{{- $_ := set $sockets "nsp.spiffe_socket" $settings.nsp.spiffe_socket -}}
{{- end -}}
{{- if eq $settings.source "nsp" }}{{ $_ := set $sockets "nsp.address" $settings.nsp.address }}{{ end -}}
{{- if $settings.nsm.enabled }}{{ $_ := set $sockets "nsm.address" $settings.nsm.address }}{{ end -}}
{{- else -}}
{{- $_ := set $sockets "probe.spiffe_socket" $settings.probe.spiffe_socket -}}
{{- range $settings.probe.report_to -}}
{{- if hasPrefix "unix:" . }}{{ $_ := set $sockets "probe.report_to" . }}{{ end -}}
{{- end -}}
{{- if eq $settings.probe.connections "nsm" }}{{ $_ := set $sockets "probe.nsm.address" $settings.probe.nsm.address }}{{ end -}}
{{- end -}}
{{- range $name, $address := $sockets -}}
{{- $path := regexReplaceAll "^unix:(//)?" (default "" $address) "" -}}
{{- if and (hasPrefix "/" $path) (not (include "lbguard.isMounted" (merge (dict "path" $path) $given))) -}}
{{- fail (printf "settings.%s = %s: no volume is mounted there; add the one that the pod has for it to %s.extraVolumeMounts" $name $path $given.component) -}}
{{- end -}}
{{- end -}}
{{- end }}
