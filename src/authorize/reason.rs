//! Why a policy decided as it did, in Pomerium's words.

/// Names each reason once, in alphabetical order.
macro_rules! reasons {
    ($($name:ident $text:literal)*) => {
        /// One reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "each is named as it is printed")]
        pub enum Reason {
            $($name,)*
        }

        const ALL: &[Reason] = &[$(Reason::$name,)*];

        impl Reason {
            /// The reason as records print it: `email-ok`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    Accept "accept"
    AcrOk "acr-ok"
    AcrUnauthorized "acr-unauthorized"
    AmrOk "amr-ok"
    AmrUnauthorized "amr-unauthorized"
    AuthTimeOk "auth-time-ok"
    AuthTimeUnauthorized "auth-time-unauthorized"
    ClaimOk "claim-ok"
    ClaimUnauthorized "claim-unauthorized"
    ClientCertificateOk "client-certificate-ok"
    ClientCertificateRequired "client-certificate-required"
    ClientCertificateUnauthorized "client-certificate-unauthorized"
    CorsRequest "cors-request"
    DateOk "date-ok"
    DateUnauthorized "date-unauthorized"
    DayOfWeekOk "day-of-week-ok"
    DayOfWeekUnauthorized "day-of-week-unauthorized"
    DomainOk "domain-ok"
    DomainUnauthorized "domain-unauthorized"
    EmailOk "email-ok"
    EmailUnauthorized "email-unauthorized"
    GroupsOk "groups-ok"
    GroupsUnauthorized "groups-unauthorized"
    HttpHeaderOk "http-header-ok"
    HttpHeaderUnauthorized "http-header-unauthorized"
    HttpMethodOk "http-method-ok"
    HttpMethodUnauthorized "http-method-unauthorized"
    HttpPathOk "http-path-ok"
    HttpPathUnauthorized "http-path-unauthorized"
    HttpQueryOk "http-query-ok"
    HttpQueryUnauthorized "http-query-unauthorized"
    InvalidClientCertificate "invalid-client-certificate"
    NonCorsRequest "non-cors-request"
    ProviderOk "provider-ok"
    ProviderUnauthorized "provider-unauthorized"
    Reject "reject"
    SessionAgeOk "session-age-ok"
    SessionAgeUnauthorized "session-age-unauthorized"
    SourceIpOk "source-ip-ok"
    SourceIpUnauthorized "source-ip-unauthorized"
    TimeOfDayOk "time-of-day-ok"
    TimeOfDayUnauthorized "time-of-day-unauthorized"
    UserOk "user-ok"
    UserUnauthenticated "user-unauthenticated"
    UserUnauthorized "user-unauthorized"
    ValidClientCertificate "valid-client-certificate"
}

/// A set of reasons, without an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons(u64);

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
        // Bits are in the order of the names.
        let mut left = self.0;
        std::iter::from_fn(move || {
            let reason = ALL.get(left.trailing_zeros() as usize).copied()?;
            left &= left - 1;
            Some(reason)
        })
    }
}
