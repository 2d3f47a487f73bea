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
{{- $factors := dict "us" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "" 1.0 -}}
{{- $seconds := mulf (regexFind "^[0-9.]+" .text | float64) (get $factors (regexFind "[a-z]*$" .text)) -}}
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
{{- range $setting := include "lbguard.settings" . | fromYamlArray -}}
{{- $group := first (splitList "." $setting.name) -}}
{{- $text := include "lbguard.value" (dict "root" $root "setting" $setting) -}}
{{- if and $setting.allowed $text -}}
{{- include "lbguard.checkDuration" (dict "setting" $setting "text" $text) -}}
{{- end -}}
{{- if and (eq $setting.name "targets_file") (not $text) (include "lbguard.targetsConfigMap" $root) -}}
{{- $text = "/etc/lbguard/targets/targets.yaml" -}}
{{- end -}}
{{- $reads := eq $component "guard" | ternary (ne $group "probe") (has $group (list "probe" "log" "metrics" "kernel")) -}}
{{- if and $reads (ne $text $setting.default) }}
- name: {{ $setting.variable }}
  value: {{ $text | quote }}
{{- end -}}
{{- end -}}
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
