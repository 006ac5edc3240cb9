{{- define "kvcache-operator.name" -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "kvcache-operator.selector" -}}
app.kubernetes.io/name: kvcache-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kvcache-operator.labels" -}}
{{ include "kvcache-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
