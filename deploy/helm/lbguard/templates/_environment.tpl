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

{{/* A duration in seconds. */}}
{{- define "lbguard.seconds" -}}
{{- $factors := dict "us" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "" 1.0 -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $factors (regexFind "[a-z]*$" .)) -}}
{{- end }}

{{/* Refuse a duration out of bounds: the schema knows what a duration looks like, not how long it is. */}}
{{- define "lbguard.checkDuration" -}}
{{- $seconds := include "lbguard.seconds" .text | float64 -}}
{{- if or (lt $seconds (float64 .setting.low)) (gt $seconds (float64 .setting.high)) -}}
{{- fail (printf "settings.%s = %s: out of bounds; allowed: a duration from %s" .setting.name .text .setting.allowed) -}}
{{- end -}}
{{- end }}

{{/*
Refuse what lbguard would not start with: settings that do not go together. Takes a map of their names to texts.
*/}}
{{- define "lbguard.checkTogether" -}}
{{- $texts := . -}}
{{- $max := get $texts "grace.max" -}}
{{- range $name := list "grace.window" "grace.neighbor_window" "grace.verdict_window" -}}
{{- $text := get $texts $name -}}
{{- if and $text (gt (include "lbguard.seconds" $text | float64) (include "lbguard.seconds" $max | float64)) -}}
{{- fail (printf "settings.%s = %s: longer than grace.max; allowed: at most grace.max, which is %s" $name $text $max) -}}
{{- end -}}
{{- end -}}
{{- $source := get $texts "source" -}}
{{- $kind := get $texts "distributor.kind" -}}
{{- if and (eq $source "kernel") (eq (get $texts "mode") "enforce") -}}
{{- fail "settings.mode = enforce: allowed: companion or observe with source kernel" -}}
{{- end -}}
{{- if and (eq $source "interposer") (eq $kind "nftables") -}}
{{- fail "settings.distributor.kind = nftables: allowed: auto, nfqlb-shm, nfqlb-cli or observe with source interposer" -}}
{{- end -}}
{{- if and (eq $kind "nfqlb-cli") (eq (get $texts "distributor.table") "anchored") -}}
{{- fail "settings.distributor.table = anchored: allowed: maglev with distributor.kind nfqlb-cli" -}}
{{- end -}}
{{- range $name := eq $source "nsp" | ternary (list "nsp.trench" "nsp.conduit") list -}}
{{- if not (get $texts $name) -}}
{{- fail (printf "settings.%s: needed with source nsp" $name) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
The environment of a component; takes (dict "root" . "component" "guard"). Only what differs from the defaults is in it.
The guard reads all settings but the probe's; the probe reads its own and the few that both have.
*/}}
{{- define "lbguard.environment" -}}
{{- $root := .root -}}
{{- $component := .component -}}
{{- $texts := dict -}}
{{- range $setting := include "lbguard.settings" . | fromYamlArray -}}
{{- $group := first (splitList "." $setting.name) -}}
{{- $text := include "lbguard.value" (dict "root" $root "setting" $setting) -}}
{{- $_ := set $texts $setting.name $text -}}
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
{{- include "lbguard.checkTogether" $texts -}}
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
