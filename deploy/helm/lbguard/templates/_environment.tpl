{{/* A value as it is written in an environment variable. JSON writes large whole numbers without an exponent. */}}
{{- define "lbguard.text" -}}
{{- if kindIs "string" . -}}
{{- . -}}
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . }}{{ $items = append $items (include "lbguard.text" .) }}{{ end -}}
{{- join "," $items -}}
{{- else if not (kindIs "invalid" .) -}}
{{- toJson . -}}
{{- end -}}
{{- end }}

{{/* The value of a setting as text; takes (dict "root" . "setting" ROW), with a row of lbguard.settings. */}}
{{- define "lbguard.value" -}}
{{- $value := .root.Values.settings -}}
{{- range splitList "." .setting.name }}{{ $value = index (default dict $value) . }}{{ end -}}
{{- kindIs "invalid" $value | ternary .setting.default (include "lbguard.text" $value) -}}
{{- end }}

{{/* Refuse a duration out of bounds: the schema knows what a duration looks like, not how long it is. */}}
{{- define "lbguard.checkDuration" -}}
{{- $seconds := include "lbguard.seconds" .text | float64 -}}
{{- if or (lt $seconds (float64 .setting.low)) (gt $seconds (float64 .setting.high)) -}}
{{- fail (printf "settings.%s = %s: out of bounds; allowed: a duration from %s" .setting.name .text .setting.allowed) -}}
{{- end -}}
{{- end }}

{{/*
The environment of a component; takes (dict "root" . "component" "guard"). Only what differs from the defaults is in it.
The guard reads all settings but the probe's; the probe reads its own and the few that both have.
*/}}
{{- define "lbguard.environment" -}}
{{- $root := .root -}}
{{- $component := .component -}}
{{- $elsewhere := dict "NSM_TRENCH_NAME" "nsp.trench" "NSM_CONDUIT_NAME" "nsp.conduit" -}}
{{- $known := dict -}}
{{- range $setting := include "lbguard.settings" . | fromYamlArray -}}
{{- $_ := set $elsewhere $setting.variable $setting.name -}}
{{- $group := first (splitList "." $setting.name) -}}
{{- $text := include "lbguard.value" (dict "root" $root "setting" $setting) -}}
{{- if and $setting.allowed $text -}}
{{- include "lbguard.checkDuration" (dict "setting" $setting "text" $text) -}}
{{- end -}}
{{- if and (eq $setting.name "targets_file") (not $text) (include "lbguard.targetsConfigMap" $root) -}}
{{- $text = "/etc/lbguard/targets/targets.yaml" -}}
{{- end -}}
{{- $_ := set $known $setting.name $text -}}
{{- $reads := eq $component "guard" | ternary (ne $group "probe") (has $group (list "probe" "log" "metrics" "kernel")) -}}
{{- if and $reads (ne $text $setting.default) }}
- name: {{ $setting.variable }}
  value: {{ $text | quote }}
{{- end -}}
{{- end -}}
{{- range (get $root.Values $component).extraEnv -}}
{{- if hasKey $elsewhere .name -}}
{{- $_ := set $known (get $elsewhere .name) (default "?" .value) -}}
{{- end -}}
{{- end -}}
{{- include "lbguard.checkTogether" (dict "component" $component "known" $known) -}}
{{- end }}

{{/* What a component listens on, as a YAML map of a port's name to its number. */}}
{{- define "lbguard.ports" -}}
{{- $root := .root -}}
{{- $component := .component -}}
{{- range $setting := include "lbguard.settings" . | fromYamlArray -}}
{{- if $setting.listens -}}
{{- $group := first (splitList "." $setting.name) -}}
{{- $text := include "lbguard.value" (dict "root" $root "setting" $setting) -}}
{{- $reads := or (eq $component "guard") (eq $group "metrics") -}}
{{- if and $reads $text }}
{{ printf "lbg-%s" $group | trunc 15 }}: {{ regexFind "[0-9]+$" $text }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The ConfigMap of the targets; empty: there is none. */}}
{{- define "lbguard.targetsConfigMap" -}}
{{- if .Values.targets.existingConfigMap -}}
{{- .Values.targets.existingConfigMap -}}
{{- else if .Values.targets.streams -}}
{{- include "lbguard.fullname" . }}-targets
{{- end -}}
{{- end }}
