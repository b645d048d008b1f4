{{- define "unlearnd.labels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "unlearnd.image" -}}
{{ .repository }}:{{ .tag }}
{{- end }}

{{/* A part's environment: `login` is the key of its database URL. */}}
{{- define "unlearnd.environment" -}}
- name: UNLEARND_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .root.Values.secrets.databases }}, key: {{ .login }}}}
- name: UNLEARND_BROKER_URL
  valueFrom: {secretKeyRef: {name: {{ .root.Values.secrets.broker }}, key: url}}
- {name: UNLEARND_STORAGE_DIR, value: /storage}
{{- with .root.Values.storageUrl }}
- {name: UNLEARND_STORAGE_URL, value: {{ . | quote }}}
{{- end }}
- {name: UNLEARND_KEYS_DIR, value: /keys}
- {name: UNLEARND_EPOCHS_DIR, value: /epochs}
- {name: UNLEARND_MODEL_ROOTS, value: /models}
- {name: UNLEARND_CORPUS_ROOTS, value: /corpora}
- {name: UNLEARND_PUBLIC_URL, value: {{ .root.Values.publicUrl | quote }}}
{{- range $name, $value := .root.Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{/* A container runs as no root, and writes nothing but its volumes and /tmp. */}}
{{- define "unlearnd.confined" -}}
securityContext:
  runAsNonRoot: true
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The images' user. New volumes and the keys belong to its group. */}}
{{- define "unlearnd.user" -}}
securityContext: {runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001, fsGroupChangePolicy: OnRootMismatch}
{{- end }}

{{/* The cloud role of a part, and the variables of its bucket. */}}
{{- define "unlearnd.account" -}}
{{- with .account }}
serviceAccountName: {{ . }}
{{- end }}
{{- end }}

{{- define "unlearnd.bucket" -}}
{{- with .secret }}
envFrom: [{secretRef: {name: {{ . }}}}]
{{- end }}
{{- end }}

{{- define "unlearnd.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /home/unlearnd/.cache}
- {name: keys, mountPath: /keys, readOnly: true}
{{- if .root.Values.claims.models }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- if .root.Values.claims.corpora }}
- {name: corpora, mountPath: /corpora, readOnly: true}
{{- end }}
{{- end }}

{{/* A part's volumes: `keys` are the key files that it may read; none: all of them. */}}
{{- define "unlearnd.volumes" -}}
- {name: tmp, emptyDir: {}}
- {name: cache, emptyDir: {}}
{{- if .root.Values.storageUrl }}
- {{- merge (dict "name" "storage") .root.Values.storageVolume | toYaml | nindent 2 }}
{{- else }}
- name: storage
  persistentVolumeClaim: {claimName: {{ .root.Values.claims.storage }}}
- name: work
  persistentVolumeClaim: {claimName: {{ .root.Values.claims.work }}}
{{- end }}
- name: epochs
  persistentVolumeClaim: {claimName: {{ .root.Values.claims.epochs }}}
- name: keys
  secret:
    secretName: {{ .root.Values.secrets.keys }}
    defaultMode: 0440  # of the group that the pod is in
    {{- with .keys }}
    items:
      {{- range . }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
    {{- end }}
{{- with .root.Values.claims.models }}
- name: models
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- with .root.Values.claims.corpora }}
- name: corpora
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- end }}
