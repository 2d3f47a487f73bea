{{/*
For charts that own the load balancer or the proxy and have this one as a dependency:

  initContainers: {{- include "lbguard.guard.initContainer" .Subcharts.lbguard | nindent 8 }}
  volumes:        {{- include "lbguard.guard.volumes" .Subcharts.lbguard | nindent 8 }}

or, for Kubernetes before 1.29, lbguard.guard.container among the containers;

and in the load balancer's own container (env has something in it with settings.source interposer only):

  env:          {{- include "lbguard.guard.loadBalancerEnv" .Subcharts.lbguard | nindent 12 }}
  volumeMounts: {{- include "lbguard.guard.loadBalancerMounts" .Subcharts.lbguard | nindent 12 }}
*/}}
{{- define "lbguard.guard.container" -}}
{{- include "lbguard.container" (dict "root" . "component" "guard" "command" "run") -}}
{{- end }}

{{- define "lbguard.guard.initContainer" -}}
{{- include "lbguard.container" (dict "root" . "component" "guard" "command" "run" "native" "yes") -}}
{{- end }}

{{/* Not empty if lbguard is a native sidecar, that is an init container that keeps running. */}}
{{- define "lbguard.guard.native" -}}
{{- $known := semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version -}}
{{- if and (eq .Values.guard.sidecar "native") (not $known) -}}
{{- fail (printf "guard.sidecar = native: Kubernetes %s runs no native sidecars; allowed: auto or container before 1.29" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and $known (ne .Values.guard.sidecar "container") }}yes{{ end -}}
{{- end }}

{{/* The field of a pod in which the container of a component is; takes (dict "root" . "component" "guard"). */}}
{{- define "lbguard.containersField" -}}
{{- if and (eq .component "guard") (include "lbguard.guard.native" .root) }}initContainers{{ else }}containers{{ end -}}
{{- end }}

{{/* The same container, for that field. */}}
{{- define "lbguard.containerForField" -}}
{{- if eq .component "probe" -}}
{{- include "lbguard.probe.container" .root -}}
{{- else if include "lbguard.guard.native" .root -}}
{{- include "lbguard.guard.initContainer" .root -}}
{{- else -}}
{{- include "lbguard.guard.container" .root -}}
{{- end -}}
{{- end }}

{{- define "lbguard.guard.volumes" -}}
{{- include "lbguard.volumes" (dict "root" . "component" "guard") -}}
{{- end }}

{{- define "lbguard.probe.container" -}}
{{- include "lbguard.container" (dict "root" . "component" "probe" "command" "probe") -}}
{{- end }}

{{- define "lbguard.probe.volumes" -}}
{{- include "lbguard.volumes" (dict "root" . "component" "probe") -}}
{{- end }}

{{- define "lbguard.container" -}}
{{- $values := get .root.Values .component -}}
{{- $ports := include "lbguard.ports" . | fromYaml -}}
{{- include "lbguard.checkSockets" . -}}
- name: lbguard
  image: {{ include "lbguard.image" .root | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  {{- if .native }}
  # Kubernetes 1.29 and newer start it before the load balancer, keep it running, and stop it last.
  restartPolicy: Always
  {{- end }}
  args: [{{ .command }}]
  {{- with include "lbguard.env" . | trim }}
  env:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with $ports }}
  ports:
    {{- range $name, $port := . }}
    - name: {{ $name }}
      containerPort: {{ $port }}
      protocol: TCP
    {{- end }}
  {{- end }}
  {{- if ne $values.healthChecks "none" }}
  {{- if eq .component "guard" }}
  readinessProbe:
    {{- include "lbguard.healthCheck" (merge (dict "flag" "--ready" "path" "/readyz" "ports" $ports) .) | nindent 4 }}
    {{- toYaml .root.Values.healthChecks.readiness | nindent 4 }}
  {{- end }}
  livenessProbe:
    {{- include "lbguard.healthCheck" (merge (dict "flag" "--live" "path" "/healthz" "ports" $ports) .) | nindent 4 }}
    {{- toYaml .root.Values.healthChecks.liveness | nindent 4 }}
  {{- end }}
  {{- with $values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "lbguard.volumeMounts" . | trim }}
  volumeMounts:
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* All variables of a component's container: of its settings, and those of extraEnv. */}}
{{- define "lbguard.env" -}}
{{- include "lbguard.environment" . | trim -}}
{{- with (get .root.Values .component).extraEnv }}
{{ toYaml . }}
{{- end -}}
{{- end }}

{{- define "lbguard.volumeMounts" -}}
{{- if eq .component "guard" }}
- name: lbguard-run
  mountPath: {{ dir .root.Values.settings.socket }}
{{- with include "lbguard.sharedMounts" .root | trim }}
{{ . }}
{{- end }}
{{- with include "lbguard.readiness.guardMounts" .root | trim }}
{{ . }}
{{- end }}
{{- if include "lbguard.targetsConfigMap" .root }}
- name: lbguard-targets
  mountPath: /etc/lbguard/targets
  readOnly: true
{{- end }}
{{- if include "lbguard.recordingVolume" .root }}
- name: lbguard-recording
  mountPath: {{ .root.Values.settings.recording.directory }}
{{- end }}
{{- if include "lbguard.parks" .root }}
- name: lbguard-tun
  mountPath: /dev/net/tun
{{- end }}
{{- end }}
{{- with (get .root.Values .component).extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "lbguard.healthCheck" -}}
{{- if eq (get .root.Values .component).healthChecks "exec" -}}
exec:
  command: [lbguard, health, {{ .flag }}]
{{- else -}}
{{- if not (hasKey .ports "lbg-metrics") -}}
{{- fail (printf "%s.healthChecks http asks settings.metrics.listen, which is empty: choose another" .component) -}}
{{- end -}}
{{- if regexMatch "^(127\\.|localhost:|\\[::1\\])" .root.Values.settings.metrics.listen -}}
{{- fail (printf "%s.healthChecks http asks settings.metrics.listen, where the kubelet cannot reach it: choose another" .component) -}}
{{- end -}}
httpGet:
  path: {{ .path }}
  port: lbg-metrics
{{- end -}}
{{- end }}

{{- define "lbguard.volumes" -}}
{{- $values := get .root.Values .component -}}
{{- if eq .component "guard" -}}
- name: lbguard-run
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- with $values.sharedMemory }}
{{- if and .enabled (not .existingVolume) }}
- name: lbguard-shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .sizeLimit }}
{{- end }}
{{- end }}
{{- if include "lbguard.interposes" .root }}
- name: lbguard-nfqlb
  configMap:
    name: {{ include "lbguard.fullname" .root }}-nfqlb
    # Without it, PATH leads to the real nfqlb, and the load balancer still starts.
    optional: true
    defaultMode: 0555
- name: lbguard-calls
  emptyDir:
    medium: Memory
    sizeLimit: {{ $values.interposer.sizeLimit }}
{{- end }}
{{- with include "lbguard.readiness.volume" .root | trim }}
{{ . }}
{{- end }}
{{- if include "lbguard.recordingVolume" .root }}
- name: lbguard-recording
  emptyDir:
    sizeLimit: {{ include "lbguard.recordingVolume" .root | quote }}
{{- end }}
{{- if include "lbguard.parks" .root }}
- name: lbguard-tun
  hostPath:
    path: /dev/net/tun
    type: CharDevice
{{- end }}
{{- with include "lbguard.targetsConfigMap" .root }}
- name: lbguard-targets
  configMap:
    name: {{ . }}
    # Without it the load balancer still starts, and lbguard reports the missing file.
    optional: true
{{- end }}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Items of a list that are taken away by their names; takes (dict "names" NAMES "extra" ITEMS). */}}
{{- define "lbguard.removed" -}}
{{- $names := .names -}}
{{- range .extra }}{{ $names = append $names .name }}{{ end -}}
{{- range $names }}
- name: {{ . }}
  $patch: delete
{{- end }}
{{- end }}
