//! Options that have no equivalent, and why.

/// Why an option is not carried over; empty when it says what happens anyway, `None` when it is not known.
pub(super) fn why(name: &str, value: &str) -> Option<&'static str> {
    if let Some((.., usual, text)) = ALWAYS.iter().find(|(known, ..)| *known == name) {
        return Some(if usual.contains(&value) { "" } else { text });
    }
    let is_it = |known: &str| match known.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == known,
    };
    TABLE.iter().find(|(names, _)| names.iter().any(|known| is_it(known))).map(|(_, text)| *text)
}

/// Options with a value that changes nothing.
const ALWAYS: &[(&str, &[&str], &str)] = &[
    (
        "skip_provider_button",
        &["true", "1"],
        "there is no page with a button: who has to sign in is sent to the provider",
    ),
    ("cookie_secure", &["true", "1"], "cookies are Secure where people come by https"),
    (
        "cookie_httponly",
        &["true", "1"],
        "the session's cookie is HttpOnly; cookie_http_only: false would change that, and should not",
    ),
    ("cookie_path", &["/"], "cookies are for the whole host"),
    ("insecure_oidc_skip_nonce", &["false", "0"], "the nonce is always checked"),
    (
        "insecure_oidc_skip_issuer_verification",
        &["false", "0"],
        "the issuer is always compared; that it may differ is a way in",
    ),
    (
        "ssl_insecure_skip_verify",
        &["false", "0"],
        "the provider's certificate is always verified; name its authority in idp_ca_file",
    ),
    ("skip_oidc_discovery", &["false", "0"], "what a provider publishes is read from its discovery document"),
    ("proxy_prefix", &["/oauth2"], "our own paths are /.pomerium/… and the callback's"),
    ("proxy_websockets", &["true", "1"], "set allow_websockets: false on the routes"),
    ("upstream_timeout", &["30s"], "set timeout on the routes, or default_upstream_timeout"),
    ("pass_user_headers", &["true", "1", "false", "0"], ""),
    ("reverse_proxy", &["true", "1", "false", "0"], ""),
    (
        "pass_basic_auth",
        &["false", "0"],
        "no password is made up for applications; X-Pomerium-Jwt-Assertion says who is calling, signed",
    ),
    ("session_store_type", &["cookie", "redis"], ""),
    (
        "real_client_ip_header",
        &["X-Forwarded-For"],
        "the client's address comes from X-Forwarded-For of trusted_proxies",
    ),
    (
        "request_logging",
        &["true", "1"],
        "every request leaves a record; access_log_fields says with which fields",
    ),
    ("auth_logging", &["true", "1"], "every decision leaves a record"),
    ("standard_logging", &["true", "1"], "set log_level"),
];

/// What has no equivalent.
const TABLE: &[(&[&str], &str)] = &[
    (&["cookie_refresh"], "tokens are renewed by themselves before they expire, one process at a time"),
    (&["cookie_csrf_*"], "each attempt has a cookie of its own, bound to the browser, for sign_in_timeout"),
    (
        &["session_cookie_minimal"],
        "the cookie holds no token: sessions are kept by the process, or in Redis or PostgreSQL",
    ),
    (
        &["whitelist_domain"],
        "people come back to hosts that are served here alone; programmatic_redirect_domain_whitelist is for programs",
    ),
    (
        &[
            "pass_access_token",
            "pass_authorization_header",
            "set_authorization_header",
            "set_basic_auth",
            "basic_auth_password",
            "prefer_email_to_user",
        ],
        "no token of the provider and no password is given to applications; X-Pomerium-Jwt-Assertion says who is calling, signed",
    ),
    (
        &["set_xauthrequest"],
        "behind nginx, /oauth2/auth answers X-Auth-Request-… on routes with decide_only: true (deploy/other-proxies.md)",
    ),
    (
        &["injectResponseHeaders*"],
        "set set_response_headers on the routes; claims are for applications, not for browsers",
    ),
    (
        &[
            "skip_jwt_bearer_tokens",
            "extra_jwt_issuers",
            "oidc_extra_audience",
            "bearer_token_login_fallback",
        ],
        "set bearer_token_format: idp_identity_token on the routes, and identity_providers for tokens of other issuers",
    ),
    (
        &["htpasswd_*", "display_htpasswd_form"],
        "people sign in with the provider; programs have tokens of their own (`portcullis tokens`)",
    ),
    (
        &["login_url", "redeem_url", "profile_url", "validate_url", "oidc_jwks_url", "oidc_public_key_file"],
        "what a provider publishes is read from its discovery document",
    ),
    (
        &["api_route", "force_json_errors"],
        "who cannot follow a redirect gets 401 as JSON by itself (Sec-Fetch-Mode, Accept)",
    ),
    (
        &["custom_templates_dir", "custom_sign_in_logo", "banner", "footer", "show_debug_on_error"],
        "pages are our own; error_contact is shown on them, show_error_details says why",
    ),
    (
        &["provider_display_name"],
        "with one provider there is no page to choose; with several it is display_name",
    ),
    (&["backend_logout_url"], "the provider's own sign-out is gone to (sign_out_at_provider)"),
    (
        &[
            "logging_*",
            "standard_logging_*",
            "auth_logging_*",
            "request_logging_*",
            "request_id_header",
            "exclude_logging_path*",
            "silence_ping_logging",
        ],
        "the log is JSON on standard error; access_log_fields and log_level change it",
    ),
    (
        &["ping_path", "ping_user_agent", "ready_path"],
        "health is at /healthz and /readyz of health_check_addr",
    ),
    (
        &["metrics_secure_address", "metrics_tls_*"],
        "set metrics_certificate_file and metrics_certificate_key_file",
    ),
    (&["tls_min_version", "tls_cipher_suite"], "TLS 1.2 and 1.3 are spoken, with sound ciphers alone"),
    (
        &["redis_*"],
        "it is part of databroker_storage_connection_string (rediss://, redis+sentinel://, redis+cluster://, user and password); databroker_storage_ca_file names an authority",
    ),
    (
        &["google_*"],
        "groups come from the provider's claims: put them into a claim, and name it in groups_claim",
    ),
    (
        &["github_org", "github_team", "github_repo", "github_user*"],
        "organisations and teams are groups here: a policy looks at `groups` (`org`, `org/team`)",
    ),
    (
        &["gitlab_group", "gitlab_project*"],
        "groups come from the provider's claims: a policy looks at `groups`",
    ),
    (&["azure_tenant"], "idp_provider_url is https://login.microsoftonline.com/TENANT/v2.0"),
    (&["entra_id_*"], "the tenant is in idp_provider_url; another proof than a secret is idp_client_key"),
    (&["approval_prompt"], "idp_request_params sets any parameter of the request to sign in"),
    (&["user_id_claim"], "people are named by `sub`"),
    (&["gap_signature*", "signature_key"], "X-Pomerium-Jwt-Assertion is signed"),
    (&["jwt_key*", "pubjwk_url"], "idp_client_key proves who we are without a secret"),
    (&["relative_redirect_url", "encode_state", "allow_query_semicolons"], "it is not needed here"),
    (&["skip_auth_strip_headers"], "what a client says about itself is removed on every route"),
    (&["flush_interval", "disable_keep_alives"], "answers stream as they come"),
    (
        &["config", "alpha_config", "config_test", "version", "convert_config_to_alpha"],
        "read as a file of its own: name it beside this one",
    ),
    (
        &["providers[1]*", "providers[2]*", "providers[3]*"],
        "several providers are `providers`, each with idp_* keys and an id; oauth2-proxy itself uses the first",
    ),
    (&["providers[0].loginURLParameters*"], "idp_request_params sets parameters of the request to sign in"),
    (&["providers[0].*"], "it has no equivalent; idp_provider and its kind know what a provider needs"),
    (
        &["injectRequestHeaders*"],
        "a claim with a prefix, a password or several values is not written; the claim alone is",
    ),
    (&["upstreamConfig*"], "set it on the route where it is needed (timeout, allow_websockets)"),
    (&["server.TLS*"], "set certificate_file and certificate_key_file"),
    (&["metricsServer*"], "set metrics_certificate_file and metrics_certificate_key_file"),
    (&["server.*"], "set address"),
    (
        &["skip_claims_from_profile_url"],
        "claims come from the ID token; userinfo is asked where the provider needs it",
    ),
    (&["use_system_trust_store"], "the system's authorities are trusted unless idp_ca_file names others"),
    (&["bitbucket_*"], "groups come from the provider's claims: a policy looks at `groups`"),
    (
        &["auth_request_response_mode", "oidc_enabled_signing_alg", "oidc_audience_claim"],
        "the provider's document says what it does; `aud` of the ID token has to be the client",
    ),
    (&["github_token"], "organisations and teams are asked for with the person's own token"),
    (&["gcp_healthchecks"], "health is at /healthz and /readyz of health_check_addr"),
    (&["force_code_challenge_method"], "PKCE is always used, with S256"),
];
