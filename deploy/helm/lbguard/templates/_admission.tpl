{{/* Policies that put a component into pods at admission; each takes (dict "root" . "component" "guard"). */}}

{{- define "lbguard.admissionSelector" -}}
{{- include "lbguard.podSelector" (merge (dict "for" (printf "admission.policy %s" .root.Values.admission.policy)) .) -}}
{{- end }}

{{/* What a component adds to a pod beside its container, as YAML. */}}
{{- define "lbguard.admissionVolumes" -}}
{{- include (printf "lbguard.%s.volumes" .component) .root | trim -}}
{{- end }}

{{- define "lbguard.kyvernoMatch" -}}
any:
  - resources:
      kinds: [Pod]
      operations: [CREATE]
      selector:
        matchLabels:
          {{- include "lbguard.admissionSelector" . | nindent 10 }}
{{- end }}

{{/* What the pod's other containers get, as a list of containers: the load balancer's, and that of its router. */}}
{{- define "lbguard.otherContainers" -}}
{{- if eq .component "guard" -}}
{{- $env := include "lbguard.guard.loadBalancerEnv" .root -}}
{{- $mounts := include "lbguard.guard.loadBalancerMounts" .root | trim -}}
{{- if or $env $mounts }}
- name: {{ .root.Values.guard.loadBalancerContainer }}
  {{- with $env }}
  env:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with $mounts }}
  volumeMounts:
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}
{{ include "lbguard.readiness.router" .root }}
{{- end }}
{{- end }}

{{- define "lbguard.kyvernoPolicy" -}}
{{- $given := . -}}
{{- $root := .root -}}
{{- $others := include "lbguard.otherContainers" . | fromYamlArray -}}
apiVersion: kyverno.io/v1
kind: Policy
metadata:
  name: {{ include "lbguard.fullname" $root }}-{{ .component }}
  labels:
    {{- include "lbguard.labels" $root | nindent 4 }}
  annotations:
    # Pods only: Deployments stay as their owner wrote them.
    pod-policies.kyverno.io/autogen-controllers: none
spec:
  failurePolicy: {{ $root.Values.admission.failurePolicy }}
  rules:
    {{- range $container := $others }}
    - name: container-{{ $container.name }}
      match:
        {{- include "lbguard.kyvernoMatch" $given | nindent 8 }}
      mutate:
        patchStrategicMerge:
          spec:
            containers:
              - (name): {{ $container.name }}
                {{- with $container.env }}
                env:
                  {{- toYaml . | nindent 18 }}
                {{- end }}
                {{- with $container.volumeMounts }}
                volumeMounts:
                  {{- toYaml . | nindent 18 }}
                {{- end }}
    {{- end }}
    - name: lbguard
      match:
        {{- include "lbguard.kyvernoMatch" . | nindent 8 }}
      mutate:
        patchStrategicMerge:
          spec:
            {{ include "lbguard.containersField" . }}:
              {{- include "lbguard.containerForField" . | nindent 14 }}
            {{- with include "lbguard.admissionVolumes" . }}
            volumes:
              {{- . | nindent 14 }}
            {{- end }}
            {{- with $root.Values.image.pullSecrets }}
            imagePullSecrets:
              {{- toYaml . | nindent 14 }}
            {{- end }}
{{- end }}

{{- define "lbguard.admissionVersion" -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- if semverCompare ">=1.36.0-0" $version -}}v1
{{- else if semverCompare ">=1.34.0-0" $version -}}v1beta1
{{- else if semverCompare ">=1.32.0-0" $version -}}v1alpha1
{{- else -}}
{{- fail (printf "admission.policy = kubernetes: Kubernetes %s has no MutatingAdmissionPolicy; allowed: none or kyverno before 1.32" $version) -}}
{{- end -}}
{{- end }}

{{- define "lbguard.kubernetesPolicy" -}}
{{- $root := .root -}}
{{- $name := printf "%s-%s-%s" $root.Release.Namespace (include "lbguard.fullname" $root) .component -}}
{{- $field := include "lbguard.containersField" . -}}
{{- $container := include "lbguard.containerForField" . | fromYamlArray -}}
{{- $patches := list -}}
{{- $others := include "lbguard.otherContainers" . | fromYamlArray -}}
{{- range $number, $other := $others -}}
{{- $place := printf "variables.container%d" $number -}}
{{- $of := dict "of" (printf "object.spec.containers[%s]" $place) "path" (printf "\"/spec/containers/\" + string(%s)" $place) -}}
{{- $patches = append $patches (merge (dict "items" $other.env "key" "name" "field" "env" "type" "Object.spec.containers.env") $of) -}}
{{- $patches = append $patches (merge (dict "items" $other.volumeMounts "key" "mountPath" "field" "volumeMounts" "type" "Object.spec.containers.volumeMounts") $of) -}}
{{- end -}}
{{- $volumes := include "lbguard.admissionVolumes" . | fromYamlArray -}}
{{- range $field, $items := dict $field $container "volumes" $volumes "imagePullSecrets" $root.Values.image.pullSecrets -}}
{{- $patches = append $patches (dict "items" $items "key" "name" "field" $field "type" (printf "Object.spec.%s" $field) "of" "object.spec" "path" "\"/spec\"") -}}
{{- end -}}
apiVersion: admissionregistration.k8s.io/{{ include "lbguard.admissionVersion" $root }}
kind: MutatingAdmissionPolicy
metadata:
  name: {{ $name }}
  labels:
    {{- include "lbguard.labels" $root | nindent 4 }}
spec:
  failurePolicy: {{ $root.Values.admission.failurePolicy }}
  reinvocationPolicy: IfNeeded
  matchConstraints:
    resourceRules:
      - apiGroups: [""]
        apiVersions: [v1]
        operations: [CREATE]
        resources: [pods]
  matchConditions:
    - name: is-not-there
      expression: >-
        !object.spec.containers.exists(c, c.name == "lbguard") &&
        !(has(object.spec.initContainers) && object.spec.initContainers.exists(c, c.name == "lbguard"))
    {{- range $number, $other := $others }}
    - name: has-container-{{ $number }}
      expression: object.spec.containers.exists(c, c.name == {{ $other.name | toJson }})
    {{- end }}
  {{- with $others }}
  variables:
    {{- range $number, $other := . }}
    - name: container{{ $number }}
      expression: object.spec.containers.map(c, c.name).indexOf({{ $other.name | toJson }})
    {{- end }}
  {{- end }}
  mutations:
    # JSON patches: an apply configuration may set no lists without keys, such as args and capabilities.
    {{- range $patch := $patches }}
    {{- if $patch.items }}
    - patchType: JSONPatch
      jsonPatch:
        expression: |-
          {{- include "lbguard.celPatch" $patch | nindent 10 }}
    {{- end }}
    {{- end }}
---
apiVersion: admissionregistration.k8s.io/{{ include "lbguard.admissionVersion" $root }}
kind: MutatingAdmissionPolicyBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "lbguard.labels" $root | nindent 4 }}
spec:
  policyName: {{ $name }}
  matchResources:
    namespaceSelector:
      matchLabels:
        kubernetes.io/metadata.name: {{ $root.Release.Namespace }}
    objectSelector:
      matchLabels:
        {{- include "lbguard.admissionSelector" . | nindent 8 }}
{{- end }}
