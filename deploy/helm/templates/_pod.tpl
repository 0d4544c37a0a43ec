{{/* The pod of a member or a host: dict "root" $ "role" "member" or "host" "slots" N "secret" NAME */}}
{{- define "transform-gateway.labels" -}}
app.kubernetes.io/name: transform-gateway
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "transform-gateway.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int .root.Values.terminationGracePeriodSeconds }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "transform-gateway.labels" . | nindent 8 }}
containers:
  - name: gateway
    image: {{ .root.Values.image | quote }}
    {{- if eq .role "host" }}
    args: [host]
    {{- else }}
    ports:
      - {name: http, containerPort: 5000}
    {{- end }}
    env:
      {{- if eq .role "member" }}
      - name: AUTH_TOKEN
        valueFrom:
          secretKeyRef: {name: {{ .root.Values.tokenSecret | quote }}, key: auth-token}
      - name: POD_NAME
        valueFrom:
          fieldRef: {fieldPath: metadata.name}
      - {name: CLUSTER_ADVERTISE_URL, value: "http://$(POD_NAME).{{ .root.Release.Name }}-members:5000"}
      {{- end }}
      - {name: CLUSTER_URL, value: {{ required "nats.url is the address of the NATS server, such as tls://broker:4222" .root.Values.nats.url | quote }}}
      - {name: CLUSTER_TLS_CA_FILE, value: /etc/transform-gateway/cluster/ca.crt}
      - {name: CLUSTER_TLS_CERT_FILE, value: /etc/transform-gateway/cluster/tls.crt}
      - {name: CLUSTER_TLS_KEY_FILE, value: /etc/transform-gateway/cluster/tls.key}
      - {name: SLOTS, value: {{ .slots | quote }}}
      {{- range $name, $value := .root.Values.settings }}
      - {name: {{ $name }}, value: {{ $value | quote }}}
      {{- end }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    resources:
      {{- toYaml .root.Values.resources | nindent 6 }}
    {{- if eq .role "host" }}
    # its port is open to its own machine only, which a proxy in the settings does not reach
    startupProbe:
      exec: &live
        command: [python, -c, "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:5000/healthz/live', timeout=3)"]
      periodSeconds: 2
      timeoutSeconds: 5
      failureThreshold: 60
    readinessProbe:
      exec:
        command: [python, -c, "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:5000/healthz/ready', timeout=3)"]
      periodSeconds: 20
      timeoutSeconds: 5
    livenessProbe:
      exec: *live
      periodSeconds: 30
      timeoutSeconds: 5
      failureThreshold: 6
    {{- else }}
    # alive, not ready: one that starts paused is not restarted
    startupProbe:
      httpGet: {path: /healthz/live, port: http}
      periodSeconds: 1
      timeoutSeconds: 2
      failureThreshold: 60
    readinessProbe:
      httpGet: {path: /healthz/ready, port: http}
      periodSeconds: 5
      timeoutSeconds: 3
    livenessProbe:
      httpGet: {path: /healthz/live, port: http}
      periodSeconds: 20
      timeoutSeconds: 5
      failureThreshold: 6
    {{- end }}
    volumeMounts:
      - {name: state, mountPath: /var/lib/transform-gateway}
      - {name: tmp, mountPath: /tmp}
      - {name: cluster-tls, mountPath: /etc/transform-gateway/cluster, readOnly: true}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 1Gi}
  - name: cluster-tls
    # root's, and the group may read it
    secret: {secretName: {{ .secret | quote }}, defaultMode: 0440}
  {{- if eq .role "host" }}
  - name: state
    emptyDir: {}
  {{- end }}
{{- end }}
