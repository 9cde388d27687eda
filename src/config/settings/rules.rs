//! How paths and headers are read, and whose word about others is taken.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Resolver, flag, key, list};
use crate::authorize::Step;
use crate::config::routes;
use crate::config::values::Count;
use crate::http::folded::{fold, is_listed_identity};
use crate::http::forwarded::ForwardedRules;
use crate::http::headers::{HeaderRules, Underscores};
use crate::http::{EscapedSlashes, PathRules};

impl Resolver<'_> {
    pub(super) fn path_rules(&mut self) -> PathRules {
        let possible = [
            ("reject_request", Some(EscapedSlashes::Reject)),
            ("keep_unchanged", Some(EscapedSlashes::Keep)),
            ("unescape_and_redirect", None),
            ("unescape_and_forward", None),
        ];
        let name = "path_with_escaped_slashes_action";
        let action = self.one_of(name, self.file.path_with_escaped_slashes_action.as_ref(), &possible);
        if action == Some(None) {
            self.error(
                name,
                "paths are never rewritten on the way; use `reject_request` or `keep_unchanged`",
            );
        }
        PathRules { escaped_slashes: action.flatten().unwrap_or_default() }
    }

    pub(super) fn header_rules(&mut self, claims: &routes::ClaimNames) -> HeaderRules {
        let possible = [
            ("reject_request", Underscores::Reject),
            ("drop_header", Underscores::Drop),
            ("allow", Underscores::Allow),
        ];
        let name = "headers_with_underscores_action";
        let underscores = self
            .one_of(name, self.file.headers_with_underscores_action.as_ref(), &possible)
            .unwrap_or_default();
        let own = claims.headers().map(fold).filter(|folded| !is_listed_identity(folded)).map(Into::into);
        HeaderRules { underscores, identity: own.collect() }
    }

    pub(super) fn forwarded_rules(&mut self) -> ForwardedRules {
        let mut trusted = Vec::new();
        for (at, typed) in list(self.file.trusted_proxies.as_ref()).into_iter().enumerate() {
            match typed.parse::<IpNet>().or_else(|_| typed.parse::<IpAddr>().map(IpNet::from)) {
                Ok(network) => trusted.push(network),
                Err(_) => self.error_at(
                    &[key("trusted_proxies"), Step::Index(at)],
                    format!("`{typed}` is not a network such as `10.0.0.0/8`"),
                ),
            }
        }
        let hops = self.file.xff_num_trusted_hops.map_or(0, |Count(hops)| hops);
        ForwardedRules {
            trusted,
            trusted_hops: usize::try_from(hops).unwrap_or(usize::MAX),
            skip_append: flag(self.file.skip_xff_append).unwrap_or_default(),
        }
    }
}
