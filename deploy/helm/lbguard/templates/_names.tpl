{{- define "lbguard.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "lbguard.labels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "lbguard.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ $tag }}{{ end -}}
{{- end }}

{{/* The pods of a component; takes (dict "root" . "component" "guard" "for" "podMonitor"). */}}
{{- define "lbguard.podSelector" -}}
{{- $selector := (get .root.Values .component).podSelector -}}
{{- if not $selector -}}
{{- fail (printf "%s.podSelector: the labels of the pods are needed for %s, such as {app: stateless-lb}" .component .for) -}}
{{- end -}}
{{- toYaml $selector -}}
{{- end }}
