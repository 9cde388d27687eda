//! Keys of Pomerium that are not ours: what becomes of each, and why.

use figment::value::Value;

/// A key of Pomerium.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreign {
    /// Its name; a `*` at the end stands for anything.
    pub(super) name: &'static str,
    /// Whether it stops the start. What could change who gets in always does.
    pub(super) refused: bool,
    /// Why, and what to do instead.
    pub(super) note: &'static str,
}

impl Foreign {
    pub(super) fn is(&self, name: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == self.name,
        }
    }
}

/// Whether a value turns a key off, or is what happens anyway.
pub(super) fn is_off(name: &str, value: &Value) -> bool {
    match value {
        Value::Empty(..) => true,
        Value::Bool(_, on) => !on || name == "cookie_secure",
        Value::Num(_, number) => number.to_u128() == Some(0) || number.to_i128() == Some(0),
        Value::Array(_, items) => {
            items.is_empty()
                && !matches!(name, "access_log_fields" | "authorize_log_fields" | "allow_upgrades")
        }
        Value::Dict(_, map) => map.is_empty() && name != "outlier_detection" && name != "mcp",
        Value::String(_, text) => {
            let usual = [
                ("bearer_token_format", "default"),
                ("lb_policy", "ROUND_ROBIN"),
                ("load_balancing_policy", "ROUND_ROBIN"),
                ("load_balancing_policy", "round_robin"),
                ("cookie_secure", "true"),
            ];
            text.is_empty()
                || matches!(text.as_str(), "false" | "0" | "0s")
                || usual.contains(&(name, text.as_str()))
        }
        Value::Char(..) => false,
    }
}

const fn inert(name: &'static str, note: &'static str) -> Foreign {
    Foreign { name, refused: false, note }
}

const fn refused(name: &'static str, note: &'static str) -> Foreign {
    Foreign { name, refused: true, note }
}

const ONE_URL: &str = "a service has one URL";
const STORE: &str = "sessions are kept where databroker_storage_type says, by no service of their own";
const ENVOY: &str = "it tunes Envoy, which is not used";
const NOT_YET: &str = "it is not there yet";

pub(super) const GLOBAL: &[Foreign] = &[
    inert("authenticate_internal_service_url", ONE_URL),
    inert("authorize_internal_service_url", ONE_URL),
    inert("databroker_service_url", STORE),
    inert("databroker_service_urls", STORE),
    inert("databroker_internal_service_url", STORE),
    inert("databroker_cluster_leader_id", STORE),
    inert("databroker_cluster_node_id", STORE),
    inert("databroker_cluster_nodes", STORE),
    inert("databroker_raft_bind_address", STORE),
    inert("tls_derive", "services prove to each other who they are with shared_secret"),
    inert("installation_id", "nothing is reported to anybody"),
    inert("proxy_log_level", "there is one log; set log_level"),
    inert("runtime_flags", "they switch parts of Pomerium"),
    inert("auto_apply_changesets", "they switch parts of Pomerium"),
    inert("circuit_breaker_thresholds", ENVOY),
    inert("envoy_*", ENVOY),
    inert("dns_*", ENVOY),
    inert("session_recording_concurrency", "sessions are not recorded"),
    inert("health_check_systemd_disabled", "systemd is told only where it asks to be, by NOTIFY_SOCKET"),
    refused(
        "allow_upgrades",
        "all upgrades are allowed; set allow_websockets: false on a route to forbid them",
    ),
    inert(
        "autocert_dir",
        "certificates are kept in state_dir, or in the session store where processes share it",
    ),
    inert("autocert_must_staple", "authorities have ended OCSP: nothing could be stapled"),
    refused("blob_storage", "sessions are not recorded"),
    refused("debug_address", "there is no debug port"),
    refused("google_cloud_serverless_authentication_service_account", "it is not supported"),
    refused("mcp_*", "MCP is not supported"),
    inert("otel_log_level", "there is one log; set log_level"),
    inert("otel_attribute_value_length_limit", "attributes are as long as what they are of"),
    refused("ssh_*", "SSH is not supported"),
    refused("timeout_write", "it would cut streams off; set timeout on the routes that need one"),
    refused("use_proxy_protocol", "the PROXY protocol is not there yet"),
    // Removed from Pomerium itself.
    refused("client_ca", "it was removed from Pomerium; use downstream_mtls"),
    refused("client_ca_file", "it was removed from Pomerium; use downstream_mtls"),
    refused(
        "idp_service_account",
        "it was removed from Pomerium; groups come from the provider's claims (groups_claim)",
    ),
    refused(
        "idp_refresh_directory_timeout",
        "it was removed from Pomerium; groups come from the provider's claims",
    ),
    refused(
        "idp_refresh_directory_interval",
        "it was removed from Pomerium; groups come from the provider's claims",
    ),
    refused("idp_qps", "it was removed from Pomerium; groups come from the provider's claims"),
    refused("tracing_*", "it was removed from Pomerium; set the otel_* keys"),
    refused(
        "forward_auth_url",
        "it was removed from Pomerium; set `decide_only: true` on the routes that another proxy asks for",
    ),
    refused("headers", "it was renamed in Pomerium: set_response_headers"),
    refused("policy_file", "it was removed from Pomerium: put the routes into the file itself"),
    refused("signing_key_algorithm", "it was removed from Pomerium: the key says its algorithm"),
    refused("administrators", "it was removed from Pomerium"),
    refused("enable_user_impersonation", "it was removed from Pomerium"),
    refused("cache_service_url", "it was removed from Pomerium; everything runs in one process"),
    refused("cookie_secure", "it was removed from Pomerium: cookies are always secure"),
    refused("refresh_cooldown", "it was removed from Pomerium"),
    refused("pomerium_debug", "it was removed from Pomerium: set log_level"),
];

pub(super) const ROUTE: &[Foreign] = &[
    inert("regex_priority_order", "routes of a file are tried in the order in which they stand"),
    inert("circuit_breaker_thresholds", ENVOY),
    inert("healthy_panic_threshold", ENVOY),
    inert("tls_upstream_allow_renegotiation", "TLS 1.2 and 1.3 are spoken without renegotiation"),
    inert("allow_renegotiation", "TLS 1.2 and 1.3 are spoken without renegotiation"),
    inert("connect_timeout", ENVOY),
    inert("dns_lookup_family", ENVOY),
    inert("upstream_connection_options", ENVOY),
    refused("depends_on", NOT_YET),
    refused("enable_google_cloud_serverless_authentication", "it is not supported"),
    refused("health_checks", NOT_YET),
    refused("outlier_detection", NOT_YET),
    refused("load_balancing_policy", "endpoints take turns; other ways are not there yet"),
    refused("lb_policy", "endpoints take turns; other ways are not there yet"),
    refused("least_request_lb_config", "endpoints take turns; other ways are not there yet"),
    refused("ring_hash_lb_config", "endpoints take turns; other ways are not there yet"),
    refused("maglev_lb_config", "endpoints take turns; other ways are not there yet"),
    refused("host_rewrite_header", NOT_YET),
    refused("host_path_regex_rewrite_pattern", NOT_YET),
    refused("host_path_regex_rewrite_substitution", NOT_YET),
    refused("idp_client_id", "a client for one route is not there yet"),
    refused("idp_client_secret", "a client for one route is not there yet"),
    refused("jwt_groups_filter", "it is not supported; send fewer groups with jwt_claims_headers"),
    refused("kubernetes_service_account_token*", NOT_YET),
    refused("mcp", "MCP is not supported"),
    refused("redirect", NOT_YET),
    refused("response", NOT_YET),
    refused("regex_rewrite_pattern", NOT_YET),
    refused("regex_rewrite_substitution", NOT_YET),
    refused("rewrite_response_headers", NOT_YET),
    refused("session_recording", "it is not supported"),
    refused("sub_policies", "Rego is not supported; write the rule as `policy`"),
    refused("tls_downstream_server_name", "the name in `from` decides"),
    refused("upstream_tunnel", "SSH is not supported"),
    refused(
        "allowed_groups",
        "it was removed from Pomerium; use allowed_idp_claims or the criterion `groups`",
    ),
    refused("set_authorization_header", "it was removed from Pomerium; use pass_identity_headers"),
];
