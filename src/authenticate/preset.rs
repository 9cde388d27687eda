//! The providers that are known by name, with their quirks.
//!
//! What a preset fills in, a setting replaces. What differs in kind stands here too: how people sign out, which claim
//! names them, how the answer comes back.

/// Which quirks a provider has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// OpenID Connect as it is written.
    #[default]
    Oidc,
    /// Amazon Cognito: groups in `cognito:groups`, a sign-out of its own, no `offline_access`.
    Cognito,
    /// Google: refresh tokens by `access_type`, nowhere to sign out.
    Google,
    /// Microsoft Entra ID: people are named by `oid`; `common` and the like have an issuer for each tenant.
    Azure,
    /// Okta.
    Okta,
    /// Auth0: an issuer with a slash at the end, and a sign-out of its own on old tenants.
    Auth0,
    /// Keycloak: refresh tokens without `offline_access`, which there means sessions that outlive the browser's.
    Keycloak,
    /// GitLab.
    Gitlab,
    /// GitHub: OAuth 2.0 and its own API; organisations and teams are groups.
    Github,
    /// OneLogin: groups in a scope of their own.
    OneLogin,
    /// Ping Identity: the address may be in `mail`.
    Ping,
    /// Apple: the answer is posted.
    Apple,
}

/// How people sign out at a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// OpenID Connect RP-Initiated Logout, where it is offered.
    EndSession,
    /// Cognito's `/logout`.
    Cognito,
    /// The same, or `/v2/logout` where it is not offered.
    Auth0,
    /// Not at all.
    Nowhere,
}

/// `idp_provider`: every name.
pub const KINDS: [(&str, Kind); 12] = [
    ("oidc", Kind::Oidc),
    ("cognito", Kind::Cognito),
    ("google", Kind::Google),
    ("azure", Kind::Azure),
    ("okta", Kind::Okta),
    ("auth0", Kind::Auth0),
    ("keycloak", Kind::Keycloak),
    ("gitlab", Kind::Gitlab),
    ("github", Kind::Github),
    ("onelogin", Kind::OneLogin),
    ("ping", Kind::Ping),
    ("apple", Kind::Apple),
];

impl Kind {
    /// What it is called on the page where people choose.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Oidc => "Single sign-on",
            Self::Cognito => "Amazon Cognito",
            Self::Google => "Google",
            Self::Azure => "Microsoft",
            Self::Okta => "Okta",
            Self::Auth0 => "Auth0",
            Self::Keycloak => "Keycloak",
            Self::Gitlab => "GitLab",
            Self::Github => "GitHub",
            Self::OneLogin => "OneLogin",
            Self::Ping => "Ping",
            Self::Apple => "Apple",
        }
    }

    /// Where it is when nothing else is said; `None`: that has to be said.
    pub const fn default_url(self) -> Option<&'static str> {
        match self {
            Self::Google => Some("https://accounts.google.com"),
            Self::Azure => Some("https://login.microsoftonline.com/common/v2.0"),
            Self::Gitlab => Some("https://gitlab.com"),
            Self::Github => Some("https://github.com"),
            Self::OneLogin => Some("https://openid-connect.onelogin.com/oidc"),
            Self::Apple => Some("https://appleid.apple.com"),
            Self::Oidc | Self::Cognito | Self::Okta | Self::Auth0 | Self::Keycloak | Self::Ping => None,
        }
    }

    /// `idp_scopes` when it is not set.
    pub const fn scopes(self) -> &'static [&'static str] {
        match self {
            Self::Cognito | Self::Google | Self::Keycloak | Self::Gitlab => &["openid", "email", "profile"],
            Self::OneLogin => &["openid", "email", "profile", "groups"],
            Self::Github => &["read:user", "user:email", "read:org"],
            Self::Apple => &["openid", "email", "name"],
            Self::Oidc | Self::Azure | Self::Okta | Self::Auth0 | Self::Ping => {
                &["openid", "email", "profile", "offline_access"]
            }
        }
    }

    /// Scopes that it would refuse.
    pub const fn unknown_scopes(self) -> &'static [&'static str] {
        match self {
            Self::Cognito => &["offline_access", "groups"],
            Self::Google | Self::Gitlab | Self::Apple => &["offline_access"],
            _ => &[],
        }
    }

    /// Parameters that are sent along unless others of the same name are set.
    pub const fn parameters(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Google => &[("access_type", "offline"), ("prompt", "select_account consent")],
            Self::Azure => &[("prompt", "select_account")],
            Self::Apple => &[("response_mode", "form_post")],
            _ => &[],
        }
    }

    /// `groups_claim` when it is not set.
    pub const fn groups_claim(self) -> &'static str {
        match self {
            Self::Cognito => "cognito:groups",
            _ => "groups",
        }
    }

    /// The claim that names a person to policies and applications.
    pub const fn subject_claim(self) -> &'static str {
        match self {
            Self::Azure => "oid",
            _ => "sub",
        }
    }

    /// The claim that holds the address when `email` does not.
    pub const fn other_email_claim(self) -> Option<&'static str> {
        match self {
            Self::Ping => Some("mail"),
            _ => None,
        }
    }

    /// Whether it speaks OpenID Connect.
    pub const fn is_oidc(self) -> bool {
        !matches!(self, Self::Github)
    }

    /// Whether its answer is a form that another site posts (OAuth 2.0 Form Post Response Mode).
    pub const fn posts(self) -> bool {
        matches!(self, Self::Apple)
    }

    /// Whether userinfo says anything that the ID token does not. Cognito's leaves the groups out.
    pub const fn asks_userinfo(self) -> bool {
        !matches!(self, Self::Cognito | Self::Github | Self::Apple)
    }

    pub(super) const fn farewell(self) -> Farewell {
        match self {
            Self::Cognito => Farewell::Cognito,
            Self::Auth0 => Farewell::Auth0,
            Self::Google | Self::Github | Self::Apple => Farewell::Nowhere,
            _ => Farewell::EndSession,
        }
    }
}
