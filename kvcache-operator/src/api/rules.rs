//! What the API server refuses by itself: rules in CEL, part of the resource's definition.
//!
//! The definition replaces AIBrix's, whose controller may serve other caches of the same cluster. So a rule refuses
//! only what no backend of AIBrix's could run either, or what our own block `spec.server` says; what hangs on the backend
//! is up to [`accept`](super::accept()), since the backend is an annotation, and rules see no annotations
//! (`deploy/policy` has rules that do).
//!
//! A message has the value and the remedy; the field is in its path. Rules ask `has(...)` before they read, and no field
//! may be null. The API server refuses a definition whose rules or messages could cost too much by its own estimate, in
//! which `maxLength` and `maxItems` count, and in which the text of an integer has no bound: so only what is text or
//! int-or-string is shown, and bounds of numbers are the schema's.

use kube::core::{Message, Rule};

/// Rules on the whole spec: those that span several fields.
pub(super) fn spec() -> Vec<Rule> {
    let limit = "has(self.cache) && has(self.cache.resources) && has(self.cache.resources.limits) && 'memory' in \
                 self.cache.resources.limits && !has(self.cache.template)";
    let limit_of = "string(self.cache.resources.limits['memory'])";
    let headroom = "(has(self.server.headroom) ? string(self.server.headroom) : '512Mi')";
    vec![
        rule(
            &format!(
                "!(has(self.server) && has(self.server.capacity) && {limit}) || \
                 quantity(string(self.server.capacity)).add(quantity({headroom}))\
                 .compareTo(quantity({limit_of})) <= 0"
            ),
            &format!(
                "'spec.server.capacity ' + string(self.server.capacity) + ' and spec.server.headroom ' + {headroom} + \
                 ' do not fit into spec.cache.resources.limits.memory ' + {limit_of} + ': raise the limit, or lower the \
                 capacity'"
            ),
            ".server.capacity",
        ),
        rule(
            &format!(
                "!(has(self.server) && !has(self.server.capacity) && {limit}) || \
                 quantity({headroom}).compareTo(quantity({limit_of})) < 0"
            ),
            &format!(
                "'spec.cache.resources.limits.memory ' + {limit_of} + ' is too small: spec.server.headroom ' + \
                 {headroom} + ' leaves nothing for blocks: raise the limit, or lower the headroom'"
            ),
            ".cache.resources",
        ),
    ]
}

/// Rules on each component.
pub(super) fn runtime() -> Vec<Rule> {
    vec![rule(
        "!has(self.imagePullPolicy) || self.imagePullPolicy in ['', 'Always', 'IfNotPresent', 'Never']",
        "'imagePullPolicy is ' + self.imagePullPolicy + ': give Always, IfNotPresent or Never'",
        ".imagePullPolicy",
    )]
}

/// Rules on a store of the ring.
pub(super) fn metadata_store() -> Vec<Rule> {
    vec![rule(
        "has(self.externalConnection) != has(self.runtime)",
        "has(self.runtime) ? 'externalConnection and runtime are both given: keep one of them' : 'neither \
         externalConnection nor runtime is given: give externalConnection to use a store that is there, or runtime to \
         have one run'",
        "",
    )]
}

/// Rules on a store that somebody else runs.
pub(super) fn external_connection() -> Vec<Rule> {
    let port = "int(self.address.substring(self.address.lastIndexOf(':') + 1))";
    let is_address =
        r"has(self.address) && self.address.matches('^([-A-Za-z0-9._]+|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5}$')";
    vec![
        rule(
            is_address,
            "'address is ' + (has(self.address) && self.address != '' ? self.address : 'missing') + ': write host:port, \
             as in redis.example:6379, and no scheme'",
            "",
        ),
        rule(
            &format!("!({is_address}) || ({port} >= 1 && {port} <= 65535)"),
            "'address is ' + self.address + ': its port is not between 1 and 65535'",
            ".address",
        ),
        rule(
            "!has(self.passwordSecretRef) || \
             self.passwordSecretRef.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[-._a-zA-Z0-9]+)?)?$')",
            "'passwordSecretRef is ' + self.passwordSecretRef + ': write the name of a Secret (the key is then password), \
             or secret/key'",
            ".passwordSecretRef",
        ),
    ]
}

/// Rules on the servers' service.
pub(super) fn service() -> Vec<Rule> {
    let protocol = |port: &str| format!("(has({port}.protocol) ? {port}.protocol : 'TCP')");
    let (p, q) = (protocol("p"), protocol("q"));
    vec![
        rule(
            "!has(self.type) || self.type in ['', 'ClusterIP', 'NodePort', 'LoadBalancer']",
            "'type is ' + self.type + ': leave it out, or write ClusterIP'",
            ".type",
        ),
        Rule::new(format!(
            "!has(self.ports) || self.ports.all(p, self.ports.exists_one(q, q.port == p.port && {q} == {p}))"
        ))
            .message("two ports have one number: change one of them, or keep one")
            .field_path(".ports"),
        Rule::new(
            "!has(self.ports) || self.ports.size() == 1 || self.ports.all(p, has(p.name) && p.name != '' && self.ports.exists_one(q, \
             has(q.name) && q.name == p.name))",
        )
        .message("two ports have one name, or none: name each differently, as in service and manage")
        .field_path(".ports"),
    ]
}

/// Rules on each port of the service.
pub(super) fn port() -> Vec<Rule> {
    // A number, or a name: those have a letter.
    let target = "string(self.targetPort)";
    vec![
        rule(
            "!has(self.protocol) || self.protocol in ['', 'TCP', 'UDP', 'SCTP']",
            "'protocol is ' + self.protocol + ': leave it out, or write TCP'",
            ".protocol",
        ),
        rule(
            &format!(
                "!has(self.targetPort) || {target}.matches('[a-z]') || ({target}.matches('^[0-9]{{1,5}}$') && \
                 int({target}) >= 1 && int({target}) <= 65535)"
            ),
            &format!(
                "'targetPort is ' + {target} + ': give 1 to 65535 or the name of a port, or leave it out'"
            ),
            ".targetPort",
        ),
    ]
}

/// Rules on our own block.
pub(super) fn server() -> Vec<Rule> {
    vec![
        rule(
            "!has(self.capacity) || quantity(string(self.capacity)).compareTo(quantity('1Mi')) >= 0",
            "'capacity is ' + string(self.capacity) + ': give at least 1Mi, as in 32Gi (m is thousandths)'",
            ".capacity",
        ),
        rule(
            "!has(self.headroom) || quantity(string(self.headroom)).compareTo(quantity('0')) >= 0",
            "'headroom is ' + string(self.headroom) + ': give 0 or more, as in 512Mi'",
            ".headroom",
        ),
    ]
}

fn rule(rule: &str, message: &str, field: &str) -> Rule {
    let rule = Rule::new(rule).message(Message::Expression(message.to_owned()));
    if field.is_empty() { rule } else { rule.field_path(field) }
}
