{{- define "portcullis.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "portcullis.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "portcullis.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "portcullis.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What all objects of a release have. */}}
{{- define "portcullis.labels" -}}
app.kubernetes.io/part-of: {{ include "portcullis.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The pods of a release, whatever they do. */}}
{{- define "portcullis.pods" -}}
app.kubernetes.io/part-of: {{ include "portcullis.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The pods where requests come in. */}}
{{- define "portcullis.front" -}}
app.kubernetes.io/name: {{ include "portcullis.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The pods that decide, with split.enabled. */}}
{{- define "portcullis.deciding" -}}
app.kubernetes.io/name: {{ include "portcullis.name" . }}-authorize
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "portcullis.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "portcullis.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "portcullis.configMapName" -}}
{{- .Values.existingConfigMap | default (include "portcullis.fullname" .) }}
{{- end }}

{{- define "portcullis.secretName" -}}
{{- .Values.existingSecret | default (include "portcullis.fullname" .) }}
{{- end }}

{{- define "portcullis.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The most processes that may keep sessions at a time. */}}
{{- define "portcullis.stores" -}}
{{- if .Values.split.enabled -}}{{ .Values.split.authorizeReplicaCount }}
{{- else if .Values.autoscaling.enabled -}}{{ .Values.autoscaling.maxReplicas }}
{{- else -}}{{ .Values.replicaCount }}
{{- end }}
{{- end }}

{{- define "portcullis.shared" -}}
{{- if has .Values.sessionStore.type (list "redis" "postgres") }}yes{{ end }}
{{- end }}

{{- define "portcullis.volume" -}}
{{- if eq .Values.sessionStore.type "file" }}yes{{ end }}
{{- end }}

{{/* What cannot work is refused before it is applied. */}}
{{- define "portcullis.refuse" -}}
{{- $stores := int (include "portcullis.stores" .) }}
{{- if and (gt $stores 1) (not (include "portcullis.shared" .)) }}
{{- fail (printf "%d processes cannot share sessions in `sessionStore.type: %s`: somebody who signed in at one would be unknown to the others. Set sessionStore.type to redis or postgres, and secrets.DATABROKER_STORAGE_CONNECTION_STRING" $stores .Values.sessionStore.type) }}
{{- end }}
{{- if and .Values.config .Values.existingConfigMap }}
{{- fail "config and existingConfigMap are both set: keep one of them" }}
{{- end }}
{{- if not (or .Values.config .Values.existingConfigMap) }}
{{- fail "config is empty: it is Portcullis's configuration (authenticate_service_url, idp_provider_url, idp_client_id, routes, …), or existingConfigMap names a ConfigMap that has it" }}
{{- end }}
{{- if and .Values.secrets .Values.existingSecret }}
{{- fail "secrets and existingSecret are both set: keep one of them" }}
{{- end }}
{{- if not (or .Values.secrets .Values.existingSecret) }}
{{- fail "secrets is empty: IDP_CLIENT_SECRET (\"\" for a public client) and SHARED_SECRET (openssl rand -base64 32), or existingSecret names a Secret that has them" }}
{{- end }}
{{- if .Values.secrets }}
{{- if and (include "portcullis.shared" .) (not .Values.secrets.DATABROKER_STORAGE_CONNECTION_STRING) }}
{{- fail (printf "secrets.DATABROKER_STORAGE_CONNECTION_STRING is missing: it says where the store is for `sessionStore.type: %s`" .Values.sessionStore.type) }}
{{- end }}
{{- if and (or .Values.split.enabled (gt $stores 1)) (not .Values.secrets.SHARED_SECRET) }}
{{- fail "secrets.SHARED_SECRET is missing, which several processes have in common: openssl rand -base64 32" }}
{{- end }}
{{- end }}
{{- include "portcullis.refuseAutocert" . }}
{{- $owned := dict "address" "service.port" "health_check_addr" "nothing: probes use it" "metrics_address" "nothing: the Service of metrics uses it" "http_redirect_addr" "service.redirectHttp" "state_dir" "sessionStore.persistence" "databroker_storage_type" "sessionStore.type" "services" "split.enabled" "grpc_address" "split.enabled" "authorize_service_url" "split.enabled" }}
{{- range $key, $instead := $owned }}
{{- if hasKey $.Values.config $key }}
{{- fail (printf "config.%s is set by the chart; what to use instead: %s" $key $instead) }}
{{- end }}
{{- end }}
{{- if and .Values.split.enabled (not .Values.tls.existingSecret) (not .Values.existingConfigMap) (not (or .Values.config.certificates .Values.config.certificate_file .Values.config.certificate)) }}
{{- fail "split.enabled needs a certificate, for what forwards asks what decides over TLS: set tls.existingSecret, or config.certificates" }}
{{- end }}
{{- $keeps := and (not (empty (include "portcullis.volume" .))) (not .Values.split.enabled) }}
{{- $long := and (eq .Values.service.externalTrafficPolicy "Local") (not .Values.config.drain_delay) }}
{{- $timeout := toString (.Values.config.drain_timeout | default (ternary "10s" (ternary "55s" "30s" $long) $keeps)) }}
{{- if and (regexMatch "^[0-9]+s$" $timeout) (gt (add (int (trimSuffix "s" $timeout)) 15) (int .Values.terminationGracePeriodSeconds)) }}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short for a drain_timeout of %s, after which up to 15 s are needed to save what would be lost" (int .Values.terminationGracePeriodSeconds) $timeout) }}
{{- end }}
{{- if and .Values.tls.existingSecret (hasKey .Values.config "certificates") }}
{{- fail "config.certificates and tls.existingSecret are both set: with tls.existingSecret \"\" the chart leaves certificates to config" }}
{{- end }}
{{- end }}

{{/* Certificates by ACME have to outlive the processes, and to be where all of them find them. */}}
{{- define "portcullis.refuseAutocert" -}}
{{- if .Values.config.autocert }}
{{- if eq .Values.sessionStore.type "memory" }}
{{- fail "config.autocert needs a place that outlives the process, or certificates are ordered anew at each start: set sessionStore.type to file, redis or postgres" }}
{{- end }}
{{- if .Values.split.enabled }}
{{- fail "config.autocert and split.enabled: what forwards has no store, so each process would order certificates for itself; use cert-manager, or no split" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The configuration as it is mounted. */}}
{{- define "portcullis.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $_ := set $config "address" ":8443" }}
{{- $_ := set $config "health_check_addr" ":28080" }}
{{- $_ := set $config "metrics_address" ":9902" }}
{{- $_ := set $config "state_dir" "/var/lib/portcullis" }}
{{- $_ := set $config "databroker_storage_type" .Values.sessionStore.type }}
{{- if .Values.service.redirectHttp }}
{{- $_ := set $config "http_redirect_addr" ":8080" }}
{{- end }}
{{- if .Values.tls.existingSecret }}
{{- $_ := set $config "certificates" (list (dict "cert" "/etc/portcullis/tls/tls.crt" "key" "/etc/portcullis/tls/tls.key")) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* What both Deployments and the doctor are: (dict "root" $ "name" … "args" … "services" …) */}}
{{- define "portcullis.pod" -}}
{{- $root := .root }}
{{- with $root.Values }}
serviceAccountName: {{ include "portcullis.serviceAccountName" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .terminationGracePeriodSeconds }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: portcullis
    image: {{ include "portcullis.image" $root }}
    imagePullPolicy: {{ .image.pullPolicy }}
    args: [{{ $.command }}, -c, /etc/portcullis/config/config.yaml]
    {{- $asks := and .split.enabled (eq $.command "run") (ne $.component "authorize") }}
    {{- if not $asks }}
    envFrom:
      - secretRef: {name: {{ include "portcullis.secretName" $root }}}
    {{- end }}
    {{- $drain := dict }}
    {{- if and (eq $.command "run") .config (not (or .config.drain_timeout .config.drain_delay)) }}
    {{- if $.keeps }}
    {{- $drain = dict "DRAIN_TIMEOUT" "10s" }}
    {{- else if and (ne $.component "authorize") (ne .service.type "ClusterIP") (eq .service.externalTrafficPolicy "Local") }}
    {{- $drain = dict "DRAIN_DELAY" "25s" "DRAIN_TIMEOUT" "55s" }}
    {{- end }}
    {{- end }}
    {{- if or $drain .split.enabled .extraEnv }}
    env:
      {{- range $name, $value := $drain }}
      - {name: {{ $name }}, value: {{ $value }}}
      {{- end }}
      {{- if $asks }}
      - {name: SERVICES, value: "proxy,authenticate"}
      - {name: AUTHORIZE_SERVICE_URL, value: "https://{{ include "portcullis.fullname" $root }}-authorize:5443"}
      {{- $host := .split.certificateName | default (get (urlParse (.config.authenticate_service_url | default "")) "hostname") }}
      {{- if not $host }}
      {{- fail "split.certificateName is missing: a name in the certificate that the processes have in common" }}
      {{- end }}
      - {name: OVERRIDE_CERTIFICATE_NAME, value: {{ $host | quote }}}
      - name: SHARED_SECRET
        valueFrom:
          secretKeyRef: {name: {{ include "portcullis.secretName" $root }}, key: SHARED_SECRET}
      {{- else if and .split.enabled (eq $.component "authorize") }}
      - {name: SERVICES, value: authorize}
      - {name: GRPC_ADDRESS, value: ":5443"}
      {{- end }}
      {{- with .extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- end }}
    {{- if eq $.command "run" }}
    ports:
      {{- if eq $.component "authorize" }}
      - {name: grpc, containerPort: 5443}
      {{- else }}
      - {name: https, containerPort: 8443}
      {{- if .service.redirectHttp }}
      - {name: http, containerPort: 8080}
      {{- end }}
      {{- end }}
      - {name: health, containerPort: 28080}
      - {name: metrics, containerPort: 9902}
    startupProbe:
      httpGet: {path: /startupz, port: health}
      periodSeconds: 1
      failureThreshold: 30
    readinessProbe:
      httpGet: {path: /readyz, port: health}
      periodSeconds: 5
    livenessProbe:
      httpGet: {path: /healthz, port: health}
      periodSeconds: 10
    {{- end }}
    resources: {{- toYaml .resources | nindent 6 }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    volumeMounts:
      # Directories, not subPath: a subPath never sees a change.
      - {name: config, mountPath: /etc/portcullis/config, readOnly: true}
      {{- if .tls.existingSecret }}
      - {name: tls, mountPath: /etc/portcullis/tls, readOnly: true}
      {{- end }}
      - {name: state, mountPath: /var/lib/portcullis}
      {{- with .extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: config
    configMap: {name: {{ include "portcullis.configMapName" $root }}}
  {{- if .tls.existingSecret }}
  - name: tls
    secret: {secretName: {{ .tls.existingSecret }}, defaultMode: 0440}
  {{- end }}
  - name: state
    {{- if and (include "portcullis.volume" $root) $.keeps }}
    persistentVolumeClaim: {claimName: {{ .sessionStore.persistence.existingClaim | default (include "portcullis.fullname" $root) }}}
    {{- else }}
    emptyDir: {}
    {{- end }}
  {{- with .extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* One process owns the sessions' file, so the old pod goes before the new one comes; else the other way round. */}}
{{- define "portcullis.strategy" -}}
{{- if .keeps -}}
type: Recreate
{{- else -}}
type: RollingUpdate
rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
{{- end }}
{{- end }}

{{/* Variables do not change in a process that runs. */}}
{{- define "portcullis.podMetadata" -}}
{{- $annotations := deepCopy .root.Values.podAnnotations }}
{{- if .root.Values.secrets }}
{{- $_ := set $annotations "checksum/secrets" (toJson .root.Values.secrets | sha256sum) }}
{{- end }}
{{- with $annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  app.kubernetes.io/part-of: {{ include "portcullis.name" .root }}
  {{- include .selector .root | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "portcullis.spread" -}}
{{- $root := .root }}
{{- $selector := .selector }}
topologySpreadConstraints:
{{- with $root.Values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include $selector $root | nindent 8 }}
{{- end }}
{{- end }}
{{- end }}
