//! Why a policy decided as it did, in Pomerium's words.

/// One reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is named as it is printed")]
pub enum Reason {
    Accept,
    ClaimOk,
    ClaimUnauthorized,
    CorsRequest,
    DomainOk,
    DomainUnauthorized,
    EmailOk,
    EmailUnauthorized,
    GroupsOk,
    GroupsUnauthorized,
    HttpMethodOk,
    HttpMethodUnauthorized,
    HttpPathOk,
    HttpPathUnauthorized,
    NonCorsRequest,
    Reject,
    SourceIpOk,
    SourceIpUnauthorized,
    UserOk,
    UserUnauthenticated,
    UserUnauthorized,
}

/// A set of reasons, without an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons(u64);

const ALL: [Reason; 21] = [
    Reason::Accept,
    Reason::ClaimOk,
    Reason::ClaimUnauthorized,
    Reason::CorsRequest,
    Reason::DomainOk,
    Reason::DomainUnauthorized,
    Reason::EmailOk,
    Reason::EmailUnauthorized,
    Reason::GroupsOk,
    Reason::GroupsUnauthorized,
    Reason::HttpMethodOk,
    Reason::HttpMethodUnauthorized,
    Reason::HttpPathOk,
    Reason::HttpPathUnauthorized,
    Reason::NonCorsRequest,
    Reason::Reject,
    Reason::SourceIpOk,
    Reason::SourceIpUnauthorized,
    Reason::UserOk,
    Reason::UserUnauthenticated,
    Reason::UserUnauthorized,
];

impl Reason {
    /// The reason as records print it: `email-ok`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::ClaimOk => "claim-ok",
            Self::ClaimUnauthorized => "claim-unauthorized",
            Self::CorsRequest => "cors-request",
            Self::DomainOk => "domain-ok",
            Self::DomainUnauthorized => "domain-unauthorized",
            Self::EmailOk => "email-ok",
            Self::EmailUnauthorized => "email-unauthorized",
            Self::GroupsOk => "groups-ok",
            Self::GroupsUnauthorized => "groups-unauthorized",
            Self::HttpMethodOk => "http-method-ok",
            Self::HttpMethodUnauthorized => "http-method-unauthorized",
            Self::HttpPathOk => "http-path-ok",
            Self::HttpPathUnauthorized => "http-path-unauthorized",
            Self::NonCorsRequest => "non-cors-request",
            Self::Reject => "reject",
            Self::SourceIpOk => "source-ip-ok",
            Self::SourceIpUnauthorized => "source-ip-unauthorized",
            Self::UserOk => "user-ok",
            Self::UserUnauthenticated => "user-unauthenticated",
            Self::UserUnauthorized => "user-unauthorized",
        }
    }
}

impl Reasons {
    /// The set of one.
    pub const fn of(reason: Reason) -> Self {
        Self(1 << reason as u8)
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether a reason is in the set.
    pub const fn contains(self, reason: Reason) -> bool {
        self.0 & (1 << reason as u8) != 0
    }

    /// The reasons, in alphabetical order.
    pub fn iter(self) -> impl Iterator<Item = Reason> {
        ALL.into_iter().filter(move |reason| self.contains(*reason))
    }
}
