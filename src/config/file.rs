//! What the operator types: every key, with its meaning and default.
//!
//! A default in parentheses is described, not typed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use super::keys::keys;
use super::values::{Any, ClaimHeaders, Count, Flag, List, Span, Text, TextMap};

/// One text, or a list of texts; commas belong to the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

/// `certificates`: pairs of files.
#[derive(Clone, Debug)]
pub struct CertificatePairs(pub Vec<CertificatePair>);

/// A certificate file and its key file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificatePair {
    /// The chain, PEM.
    pub cert: Text,
    /// The key, PEM.
    pub key: Text,
}

/// `downstream_mtls`: client certificates.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DownstreamMtls {
    /// Certificates of the authorities: base64 of PEM.
    pub ca: Option<Text>,
    /// A file with them, PEM.
    pub ca_file: Option<Text>,
    /// Lists of revoked certificates: base64 of PEM.
    pub crl: Option<Text>,
    /// A file with them, PEM.
    pub crl_file: Option<Text>,
    /// `policy_with_default_deny`, `policy` or `reject_connection`.
    pub enforcement: Option<Text>,
    /// Alternative names, each one key (`dns`, `email`, …) with a regular expression.
    pub match_subject_alt_names: Option<Vec<BTreeMap<String, Text>>>,
    /// How long a chain may be.
    pub max_verify_depth: Option<Count>,
}

/// Routes are read one by one, key by key.
#[derive(Clone, Copy, Debug)]
pub struct Routes;

/// `identity_providers`.
pub(super) type IdentityProviders = BTreeMap<String, IdentityProvider>;

/// One of `identity_providers`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityProvider {
    /// `iss` of its tokens, or `kubernetes:///`.
    pub issuer: Option<Text>,
    /// Its keys.
    pub jwks_url: Option<Text>,
    /// The algorithms that it signs with.
    pub supported_algs: Option<List>,
    /// For whom tokens are made that are taken here.
    pub audiences: Option<List>,
    /// Where it is asked about tokens that say nothing by themselves (RFC 7662).
    pub introspection_url: Option<Text>,
    /// Who asks.
    pub client_id: Option<Text>,
    /// The secret.
    pub client_secret: Option<Text>,
    /// A file that holds it.
    pub client_secret_file: Option<Text>,
}

/// Providers too.
#[derive(Clone, Copy, Debug)]
pub struct Providers;

impl<'de> Deserialize<'de> for Providers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl<'de> Deserialize<'de> for Routes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl<'de> Deserialize<'de> for CertificatePairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            One(Text),
            Many(Vec<Text>),
        }
        match Form::deserialize(deserializer) {
            Ok(Form::One(Text(one))) => Ok(Self(vec![one])),
            Ok(Form::Many(many)) => Ok(Self(many.into_iter().map(|Text(one)| one).collect())),
            Err(_) => Err(serde::de::Error::custom("a text or a list of texts was expected")),
        }
    }
}

keys! {
    /// The settings of the whole.
    pub struct File {
        /// Where requests are accepted: `host:port` or `:port`. Port 0 picks a free one.
        address: Text = ":443";
        /// Accept cleartext HTTP/1.1 instead of TLS: behind a balancer that ends TLS, or for development.
        insecure_server: Flag = "false";
        /// Which versions of HTTP are offered over TLS: `auto`, `http1` or `http2`.
        codec_type: Text = "auto";
        /// Where other proxies ask over gRPC (Envoy's `ext_authz`), if they do: `host:port` or `:port`. They have to be
        /// named in trusted_proxies, or to be processes of ours with the same shared_secret.
        grpc_address: Text = "";
        /// Cleartext there, instead of TLS with the same certificates; and on the way to authorize_service_url.
        grpc_insecure: Flag = "false";
        /// Data-plane threads.
        workers: Count = "(the processors it may use)";
        /// Which services this process runs: `all`, or some of `proxy` (forwards), `authenticate` (the authenticate host) and
        /// `authorize` (decides, and keeps the sessions). A process without `authorize` asks one at authorize_service_url.
        services: List = "all";
        /// The service that decides for a process without it, or a list of them.
        authorize_service_url: List = "";
        /// The same.
        authorize_service_urls: List = "";
        /// How long that may take; then the answer is 503.
        grpc_client_timeout: Span = "10s";
        /// The name in that service's certificate.
        override_certificate_name: Text = "(the host of its URL)";
        /// How much is logged: `trace`, `debug`, `info`, `warn`, `error` or `off`.
        log_level: Text = "info";
        /// `json`: one object a line; `text`: for people.
        log_format: Text = "json";
        /// Where cleartext is answered with a redirect to the same place by `https`, such as `:80`.
        http_redirect_addr: Text = "(nowhere)";
        /// Where `/healthz`, `/readyz`, `/startupz` and `/status` are answered.
        health_check_addr: Text = "127.0.0.1:28080";
        /// `otlp`: traces are sent to an OpenTelemetry collector, by these standard keys; `none`: there are none.
        otel_traces_exporter: Text = "none";
        /// Turns them off whatever the others say.
        otel_sdk_disabled: Flag = "false";
        /// The collector, without the path `/v1/traces`.
        otel_exporter_otlp_endpoint: Text = "http://localhost:4318";
        /// The whole URL for traces.
        otel_exporter_otlp_traces_endpoint: Text = "";
        /// `http/protobuf` or `grpc`, whose collector is at `http://localhost:4317` unless another one is named.
        otel_exporter_otlp_protocol: Text = "http/protobuf";
        /// The same, for traces.
        otel_exporter_otlp_traces_protocol: Text = "";
        /// Fields of the calls to it: `name=value,name=value`, percent-encoded.
        otel_exporter_otlp_headers: Text = "";
        /// The same, for traces.
        otel_exporter_otlp_traces_headers: Text = "";
        /// How long a call may take: milliseconds.
        otel_exporter_otlp_timeout: Text = "(10000)";
        /// The same, for traces.
        otel_exporter_otlp_traces_timeout: Text = "";
        /// Which traces are sent on: `parentbased_traceidratio`, `traceidratio`, `always_on`, `always_off`,
        /// `parentbased_always_on`, `parentbased_always_off`. The parent's flag counts when one of trusted_proxies sent it.
        otel_traces_sampler: Text = "(parentbased_traceidratio)";
        /// The share of them, from 0 to 1.
        otel_traces_sampler_arg: Text = "(1)";
        /// What is said of this service: `name=value,name=value`.
        otel_resource_attributes: Text = "";
        /// What it is called.
        otel_service_name: Text = "(portcullis)";
        /// How long spans wait for others to be sent with them: milliseconds.
        otel_bsp_schedule_delay: Text = "(5000)";
        /// So many are sent at once.
        otel_bsp_max_export_batch_size: Count = "512";
        /// So many requests may wait for that; the spans of further ones are dropped.
        otel_bsp_max_queue_size: Count = "2048";
        /// Which fields the records of requests have: `request-id`, `method`, `authority`, `path`, `response-code`, `size`,
        /// `duration`, `ip`, `protocol`, `user-agent`, `route`, `ended`, `error`; besides those `referer` (without its query),
        /// `forwarded-for`, and `headers.NAME` for a field of the request's head. What may hold secrets is refused.
        access_log_fields: List = "(all but those of the head)";
        /// Which fields the records of decisions have besides `allow`, `rule` and `reasons`: `request-id`, `session-id`, `user`,
        /// `email`, `saw`, `report`, `route`, `method`, `host`, `path`, `ip`, `duration`, `headers.NAME`.
        authorize_log_fields: List = "(all but those of the head)";
        /// Where `/metrics` is answered for Prometheus, such as `127.0.0.1:9090`; never a public port.
        metrics_address: Text = "(nowhere)";
        /// Who may read them: base64 of `user:password`, for HTTP Basic.
        metrics_basic_auth: Text = "";
        /// The same, in a file.
        metrics_basic_auth_file: Text = "";
        /// The certificate chain for TLS on `metrics_address`: base64 of PEM. Without one, cleartext is spoken.
        metrics_certificate: Text = "";
        /// Its key: base64 of PEM.
        metrics_certificate_key: Text = "";
        /// The certificate chain in a file, PEM.
        metrics_certificate_file: Text = "";
        /// Its key in a file, PEM.
        metrics_certificate_key_file: Text = "";
        /// Whose certificates have to be shown there: base64 of PEM.
        metrics_client_ca: Text = "";
        /// The same, in a file, PEM.
        metrics_client_ca_file: Text = "";
        /// How long a stopping server waits for what is under way, in all.
        drain_timeout: Span = "30s";
        /// How long it goes on accepting connections first, after `/readyz` has said that it stops, so that balancers hear of
        /// it before they are refused; each connection is used once more at the most. Not after `INT`, which a person sends.
        drain_delay: Span = "(5s when /readyz was asked for within the last 30 s, else 0s)";

        /// Where sessions and keys are kept; made when it is missing.
        state_dir: Text = "($STATE_DIRECTORY, else $XDG_STATE_HOME/portcullis, else /var/lib/portcullis)";
        /// Where sessions live: `memory` (they end with the process), `file` (they outlive it), `redis` (several processes
        /// share them; Valkey too) or `postgres` (the same).
        databroker_storage_type: Text = "(file when state_dir is writable, else memory)";
        /// Where the store is, when it is elsewhere: `redis://user:password@host:6379/0`, `rediss://…` (TLS, with
        /// certificate_authority where that is set), `redis+sentinel://host:26379,host:26379/NAME/0`,
        /// `redis+cluster://host:6379,host:6379`; or `postgres://user:password@host:5432,host:5432/database?sslmode=require`,
        /// where an encrypted connection is always verified, and the schema is made by itself. What is known goes on for 60 s when the store is not heard from; then
        /// those who have signed in get 503 until it is.
        [secret] databroker_storage_connection_string: Text = "";
        /// A file that holds databroker_storage_connection_string.
        databroker_storage_connection_string_file: Text = "";
        /// A session that nobody used for so long ends. A use is a request; a WebSocket or a download that lasts is none.
        session_idle_timeout: Span = "";
        /// The server's own secret: base64 of 32 bytes, or several (a list, or with commas between them), of which the first
        /// makes and all verify: `portcullis keys rotate` writes the next list. Without one it is made and kept in state_dir.
        [secret] shared_secret: Texts = "";
        /// A file that holds shared_secret, one a line.
        shared_secret_file: Text = "";
        /// Used as shared_secret where that is not set.
        [secret] cookie_secret: Texts = "";
        /// A file that holds cookie_secret, one a line.
        cookie_secret_file: Text = "";
        /// The key that signs assertions: PEM (P-256 or RSA), or base64 of it; or several, of which the first signs and all
        /// are published.
        [secret] signing_key: Texts = "(derived from shared_secret)";
        /// A file that holds signing_key; several stand one after the other.
        signing_key_file: Text = "";

        /// The certificate chain: base64 of PEM.
        certificate: Text = "(a self-signed one)";
        /// Its key: base64 of PEM.
        [secret] certificate_key: Text = "";
        /// A file with the certificate chain, PEM.
        certificate_file: Text = "";
        /// A file with its key, PEM.
        certificate_key_file: Text = "";
        /// More certificates, chosen by the name that is asked for: a list of `cert` and `key` files.
        certificates: CertificatePairs = "";
        /// Order certificates for the authenticate host and the hosts of routes from an authority, by ACME: for each host that no
        /// certificate here is for, but for wildcards. The authority asks at the host itself, on port 443, or on port 80
        /// where http_redirect_addr is set. They are kept in state_dir, or in the session store where processes share it.
        /// Who sets this agrees to the authority's terms.
        autocert: Flag = "false";
        /// The directory of the authority.
        autocert_ca: Text = "https://acme-v02.api.letsencrypt.org/directory";
        /// Let's Encrypt's staging authority instead, whose certificates browsers do not trust: to try it out.
        autocert_use_staging: Flag = "false";
        /// Where the authority may write to about the account.
        autocert_email: Text = "";
        /// For authorities that know their customers by other means: the name of the key they give,
        autocert_eab_key_id: Text = "";
        /// and the key, base64url.
        [secret] autocert_eab_mac_key: Text = "";
        /// The same, in a file.
        autocert_eab_mac_key_file: Text = "";
        /// Trust roots for the authority's own address instead of the system's: base64 of PEM.
        autocert_trusted_ca: Text = "";
        /// A file with them, PEM.
        autocert_trusted_ca_file: Text = "";
        /// Client certificates. `ca` or `ca_file`: the authorities whose certificates are asked for (base64 of PEM, or a
        /// PEM file). `crl` or `crl_file`: lists of revoked certificates; when there is one for an authority of a chain,
        /// there has to be one for each. `enforcement`: `policy_with_default_deny` (whoever shows no valid certificate is
        /// refused on every route), `policy` (only the policies look at it) or `reject_connection` (the handshake
        /// fails). `match_subject_alt_names`: a list of `dns`, `email`, `uri`, `ip_address` or `user_principal_name`,
        /// each with a regular expression for the whole name, of which a certificate has to meet one.
        /// `max_verify_depth`: so many authorities may be in a chain (1 by default; 0 is no limit).
        downstream_mtls: DownstreamMtls = "";
        /// Trust roots besides the system's, for providers and upstreams: base64 of PEM.
        certificate_authority: Text = "";
        /// A file with trust roots besides the system's, PEM.
        certificate_authority_file: Text = "";

        /// The URL under which people sign in. It may be the URL of a route.
        authenticate_service_url: Text = "(the first route's)";
        /// The path of the callback on the authenticate host. It may be `/`.
        authenticate_callback_path: Text = "/oauth2/callback";
        /// Further callback URLs that are answered, while a client is moved.
        authenticate_callback_aliases: List = "";
        /// How long a started sign-in may take.
        sign_in_timeout: Span = "15m";
        /// After the session is ended here, go on to the provider's sign-out where it has one.
        sign_out_at_provider: Flag = "true";
        /// Where people go once they have signed out.
        signout_redirect_url: Text = "(a page that says so)";
        /// Keep a form that a page of the same site sent, through a sign-in.
        preserve_post: Flag = "true";

        /// The name of the session cookie, after its `__Host-`.
        cookie_name: Text = "_pomerium";
        /// One cookie for all hosts below this domain, instead of one a host.
        cookie_domain: Text = "";
        /// Keep the cookie from scripts.
        cookie_http_only: Flag = "true";
        /// When a session ends at the latest.
        cookie_expire: Span = "14h";
        /// `lax`, `strict` or `none`.
        cookie_same_site: Text = "lax";

        /// The kind of identity provider: `oidc`, `cognito`, `google`, `azure`, `okta`, `auth0`, `keycloak`, `gitlab`,
        /// `github`, `onelogin`, `ping` or `apple`. Amazon Cognito is recognised by its URL too.
        idp_provider: Text = "oidc";
        /// The issuer, with or without a slash at the end; its discovery URL; or a Cognito pool id.
        idp_provider_url: Text = "(that of google, azure, gitlab, github, onelogin and apple is known)";
        /// The client's id at the provider.
        idp_client_id: Text = "";
        /// The client's secret, or a list of them, tried in order; a public client has none.
        [secret] idp_client_secret: Texts = "";
        /// A file that holds idp_client_secret, or several, one a line.
        idp_client_secret_file: Text = "";
        /// The key with which the client proves who it is instead (`private_key_jwt`): PEM (P-256 or RSA), or base64 of it.
        [secret] idp_client_key: Text = "";
        /// A file that holds idp_client_key.
        idp_client_key_file: Text = "";
        /// How the client proves who it is: `auto`, `basic`, `post`, `private_key_jwt` or `none`.
        idp_client_auth: Text = "auto";
        /// The scopes that are asked for: a list, or a text with commas or spaces.
        idp_scopes: List = "(openid, email, profile, and what the kind of provider needs for sessions to be renewed)";
        /// Further parameters of the sign-in request.
        idp_request_params: TextMap = "";
        /// A file with the trust roots for the provider, PEM, instead of the system's.
        idp_ca_file: Text = "";
        /// Addresses for names of the provider: a list of `host=address` or `host=address:port`.
        idp_resolve: List = "";
        /// An HTTP proxy for calls to the provider, and to the authority of certificates.
        idp_http_proxy: Text = "";
        /// Several providers at once, instead of one by the `idp_` keys above: a list of maps with the keys shown here.
        /// People choose one, unless the route has a `provider`.
        providers: Providers = "";
        /// The claim that the criterion `groups` reads.
        groups_claim: Text = "(groups; cognito:groups for Cognito)";
        /// Rules on e-mail and domain that allow need an address that the provider has verified.
        require_verified_email: Flag = "true";
        /// Claims without which nobody is let in.
        require_claims: List = "";

        /// What `Authorization: Bearer` means: `default` (nothing here: it is the application's), `idp_access_token`,
        /// `idp_identity_token` (of a provider that people sign in with) or `jwt` (of one of identity_providers).
        bearer_token_format: Text = "default";
        /// For whom access tokens are made that are taken here.
        idp_access_token_allowed_audiences: List = "(the client's own id, for Amazon Cognito)";
        /// Issuers of tokens that nobody signs in with: a map from a name to `issuer` (`kubernetes:///`: the cluster that this
        /// runs in), `audiences`, `jwks_url` (else where the issuer's discovery document says), `supported_algs` (RS256, ES256
        /// and EdDSA when it is not set); and for tokens that say nothing by themselves `introspection_url` (RFC 7662) with
        /// `client_id` and `client_secret` or `client_secret_file`. Whoever a token is about is called by the name, a slash
        /// and `sub`.
        identity_providers: IdentityProviders = "";
        /// Hosts to which a program's token may be sent after /.pomerium/api/v1/login.
        programmatic_redirect_domain_whitelist: List = "localhost";

        /// Tell upstreams who is calling: claim headers and a signed assertion.
        pass_identity_headers: Flag = "false";
        /// Claims that are sent as headers: a list, or a map from header to claim.
        jwt_claims_headers: ClaimHeaders = "";
        /// `iss` of the assertion: `hostOnly` or `uri`.
        jwt_issuer_format: Text = "hostOnly";
        /// Headers set on every answer of an upstream; the key `disable` turns them all off.
        set_response_headers: TextMap = "(X-Frame-Options, X-XSS-Protection, and with a certificate Strict-Transport-Security)";
        /// Shown on pages that refuse somebody.
        error_contact: Text = "";

        /// Networks whose forwarded headers are believed.
        trusted_proxies: List = "";
        /// So many proxies stand in front, whatever their address.
        xff_num_trusted_hops: Count = "0";
        /// Send a believed X-Forwarded-For on as it came.
        skip_xff_append: Flag = "false";
        /// A path with %2F or %5C: `reject_request`, or `keep_unchanged`.
        path_with_escaped_slashes_action: Text = "reject_request";
        /// A header name with an underscore: `reject_request`, `drop_header` or `allow`.
        headers_with_underscores_action: Text = "reject_request";
        /// Paths are always matched in their canonical form, so only `true`.
        normalize_path: Flag = "true";
        /// Slashes are always merged for matching, so only `true`.
        merge_slashes: Flag = "true";

        /// The longest silence in a request's body; 0 is no limit.
        timeout_read: Span = "30s";
        /// When an idle connection is closed.
        timeout_idle: Span = "5m";
        /// How long an upstream may take to begin its answer; 0 is no limit.
        default_upstream_timeout: Span = "30s";

        /// What is protected: a list of routes; the first that matches a request decides.
        routes: Routes = "";
        /// More routes, before those of `routes`.
        policy: Routes = "";
    }
}

impl ProviderFile {
    /// The one provider of a file that has no list of them.
    pub fn only(file: &File) -> Self {
        let file = file.clone();
        Self {
            id: Some(Text("default".into())),
            display_name: None,
            logo_file: None,
            callback_path: file.authenticate_callback_path,
            idp_provider: file.idp_provider,
            idp_provider_url: file.idp_provider_url,
            idp_client_id: file.idp_client_id,
            idp_client_secret: file.idp_client_secret,
            idp_client_secret_file: file.idp_client_secret_file,
            idp_client_key: file.idp_client_key,
            idp_client_key_file: file.idp_client_key_file,
            idp_client_auth: file.idp_client_auth,
            idp_scopes: file.idp_scopes,
            idp_request_params: file.idp_request_params,
            idp_ca_file: file.idp_ca_file,
            idp_resolve: file.idp_resolve,
            idp_http_proxy: file.idp_http_proxy,
            groups_claim: file.groups_claim,
            link_by_email: None,
        }
    }
}

keys! {
    /// The settings of one provider of several.
    pub struct ProviderFile {
        /// Its name in policies, routes and logs: letters, digits, `-` and `_`.
        id: Text = "";
        /// What it is called where people choose.
        display_name: Text = "(the name of its kind)";
        /// A picture shown there: a file, PNG or SVG, of at most 64 KiB.
        logo_file: Text = "";
        /// The path of its callback; each provider has its own.
        callback_path: Text = "(authenticate_callback_path, a slash and the id)";
        /// The kind of identity provider.
        idp_provider: Text = "oidc";
        /// The issuer.
        idp_provider_url: Text = "(that of the kind, where it is known)";
        /// The client's id at the provider.
        idp_client_id: Text = "";
        /// The client's secret, or a list of them, tried in order.
        [secret] idp_client_secret: Texts = "";
        /// A file that holds it, or several, one a line.
        idp_client_secret_file: Text = "";
        /// The key of `private_key_jwt`: PEM (P-256 or RSA), or base64 of it.
        [secret] idp_client_key: Text = "";
        /// A file that holds it.
        idp_client_key_file: Text = "";
        /// How the client proves who it is.
        idp_client_auth: Text = "auto";
        /// The scopes that are asked for.
        idp_scopes: List = "";
        /// Further parameters of the sign-in request.
        idp_request_params: TextMap = "";
        /// A file with the trust roots for the provider, PEM, instead of the system's.
        idp_ca_file: Text = "";
        /// Addresses for names of the provider.
        idp_resolve: List = "";
        /// An HTTP proxy for calls to the provider.
        idp_http_proxy: Text = "";
        /// The claim that the criterion `groups` reads.
        groups_claim: Text = "";
        /// Name people by their verified address, so that they are the same at every provider that is linked so. Otherwise
        /// a person is called by the id of the provider, a slash and `sub`, and has nothing to do with one of another
        /// provider.
        link_by_email: Flag = "false";
    }
}

keys! {
    /// The settings of a route.
    pub struct RouteFile {
        /// The URL under which it is served; `*` in the host stands for anything.
        from: Text = "";
        /// The upstream's URL, or a list of them, each with `,weight` where they differ.
        to: Texts = "";
        /// Another proxy forwards, and only asks whether it may: the route has no `to`.
        decide_only: Flag = "false";
        /// Only this path.
        path: Text = "";
        /// Only this path and what is below it, by whole segments.
        prefix: Text = "";
        /// Only paths that match this regular expression as a whole (RE2).
        regex: Text = "";
        /// A name for records and pages.
        name: Text = "";
        /// A description for the page of applications.
        description: Text = "";
        /// A picture for the page of applications.
        logo_url: Text = "";

        /// Who may pass, in the Pomerium Policy Language. Without any rule nobody may.
        policy: Any = "";
        /// The provider that has to vouch for the caller, where there are several: its id.
        provider: Text = "(any)";
        /// Further parameters of the sign-in request, such as `identity_provider` or `login_hint`.
        idp_request_params: TextMap = "";
        /// What `Authorization: Bearer` means here.
        bearer_token_format: Text = "(the global one)";
        /// Those of identity_providers whose tokens are taken.
        identity_providers: List = "(all)";
        /// For whom access tokens are made that are taken here.
        idp_access_token_allowed_audiences: List = "(the global one)";
        /// A token may be the password of HTTP Basic, for tools that can do nothing else.
        basic_auth_token: Flag = "false";
        /// Everybody may pass, without signing in.
        allow_public_unauthenticated_access: Flag = "false";
        /// Everybody who has signed in may pass.
        allow_any_authenticated_user: Flag = "false";
        /// These may pass: subjects or e-mail addresses.
        allowed_users: List = "";
        /// Who has an address in one of these domains may pass.
        allowed_domains: List = "";
        /// Who has one of these values in one of these claims may pass.
        allowed_idp_claims: Any = "";
        /// CORS preflights may pass without signing in.
        cors_allow_preflight: Flag = "false";
        /// `report`: `report_policy` is evaluated and recorded with every decision, and not acted on.
        policy_mode: Text = "enforce";
        /// A policy to be tried before it is enforced, in the Pomerium Policy Language.
        report_policy: Any = "";
        /// Say on the refusal page which rule refused and why.
        show_error_details: Flag = "false";

        /// Tell this upstream who is calling.
        pass_identity_headers: Flag = "(the global one)";
        /// `iss` of the assertion: `hostOnly` or `uri`.
        jwt_issuer_format: Text = "(the global one)";
        /// Headers set on every request to the upstream.
        set_request_headers: TextMap = "";
        /// Headers removed from every request to the upstream.
        remove_request_headers: List = "";
        /// Headers set on every answer of the upstream.
        set_response_headers: TextMap = "";
        /// Send the client's `Host` on.
        preserve_host_header: Flag = "false";
        /// Send this `Host`.
        host_rewrite: Text = "";
        /// Replace the matched prefix with this one.
        prefix_rewrite: Text = "";

        /// How long the upstream may take for its whole answer; 0 is no limit.
        timeout: Span = "(default_upstream_timeout, for the beginning of the answer)";
        /// The longest silence in an answer or a tunnel; 0 is no limit.
        idle_timeout: Span = "";
        /// Whether requests may become WebSockets.
        allow_websockets: Flag = "true";
        /// Whether requests may become SPDY tunnels.
        allow_spdy: Flag = "true";
        /// The only protocols that requests may change to; all of them when it is not set.
        allow_upgrades: List = "";

        /// Instead of `downstream_mtls.ca`, the authorities whose client certificates are asked for at this host: base64 of
        /// PEM. All routes of a host have the same.
        tls_downstream_client_ca: Text = "";
        /// A file with them, PEM.
        tls_downstream_client_ca_file: Text = "";

        /// Believe any certificate of the upstream.
        tls_skip_verify: Flag = "false";
        /// The name that the upstream's certificate is for.
        tls_server_name: Text = "(the host in `to`)";
        /// The same, and it wins.
        tls_upstream_server_name: Text = "";
        /// The only trust roots for the upstream: base64 of PEM.
        tls_custom_ca: Text = "";
        /// A file with the only trust roots for the upstream, PEM.
        tls_custom_ca_file: Text = "";
        /// The certificate shown to the upstream: base64 of PEM.
        tls_client_cert: Text = "";
        /// Its key: base64 of PEM.
        [secret] tls_client_key: Text = "";
        /// A file with the certificate shown to the upstream, PEM.
        tls_client_cert_file: Text = "";
        /// A file with its key, PEM.
        tls_client_key_file: Text = "";
    }
}
