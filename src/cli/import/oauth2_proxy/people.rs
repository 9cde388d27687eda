//! Who may pass: never more than there.

use serde_json::{Value, json};

use super::super::options::Setting;
use super::Import;

/// What restricts who may pass, by the beginning of its name, and is not written.
const RESTRICTIONS: &[&str] = &[
    "github_repo",
    "github_user",
    "google_group",
    "gitlab_group",
    "gitlab_project",
    "bitbucket_",
    "entra_id_allowed_tenant",
    "providers[0].githubConfig.",
    "providers[0].googleConfig.group",
    "providers[0].gitlabConfig.",
    "providers[0].bitbucketConfig.",
    "providers[0].keycloakConfig.",
    "providers[0].microsoftEntraIDConfig.allowedTenants",
    "providers[0].microsoftEntraIDConfig.AllowedTenants",
    "providers[0].ADFSConfig.",
];

impl Import {
    /// The groups that the provider's own options name, and whether they restrict in a way that cannot be written.
    fn restrictions(&mut self) -> (Vec<Value>, bool) {
        let organisation = self.one("github_org");
        let mut teams = Vec::new();
        for one in self.take("github_team") {
            for team in one.value.split(',').map(str::trim).filter(|team| !team.is_empty()) {
                let within = organisation.as_ref().map(|one| one.value.as_str());
                teams.push(match team.split_once(':').or_else(|| Some((within?, team))) {
                    Some((organisation, team)) => json!({"groups": format!("{organisation}/{team}")}),
                    None => json!({"reject": true}),
                });
            }
        }
        if teams.is_empty() {
            teams.extend(organisation.map(|one| json!({"groups": one.value})));
        }
        let others: Vec<Setting> = self
            .options
            .iter()
            .filter(|(name, _)| RESTRICTIONS.iter().any(|start| name.starts_with(start)))
            .flat_map(|(_, settings)| settings.iter().filter(|one| !one.value.is_empty()).cloned())
            .collect();
        for one in &others {
            self.remark(one, "it restricts who may pass, in a way that is not written: nobody passes until the routes' policy says who (`groups`, `email`, `claim/NAME`)");
        }
        self.options.retain(|name, _| !RESTRICTIONS.iter().any(|start| name.starts_with(start)));
        (teams, !others.is_empty())
    }

    /// The rules of who may pass, as alternatives.
    pub(super) fn who(&mut self) -> Vec<Value> {
        let nobody = || vec![json!({"allow": {"or": []}})];
        let (within, is_closed) = self.restrictions();
        let (mut people, mut is_anybody, mut is_listed) = (Vec::new(), false, false);
        for one in self.take("email_domain") {
            match one.value.as_str() {
                "*" => {
                    is_anybody = true;
                    self.remark(&one, "whoever has an address that the provider calls verified; where it never says so, as Microsoft does not, `require_verified_email: false` lets others in too");
                }
                domain => match domain.strip_prefix('.') {
                    Some(_) => people.push(json!({"domain": {"ends_with": domain.to_ascii_lowercase()}})),
                    None => people.push(json!({"domain": domain.to_ascii_lowercase()})),
                },
            }
        }
        if let Some(one) = self.one("authenticated_emails_file") {
            is_listed = true;
            let beside = one.file.parent().map(|parent| parent.join(&one.value));
            let text = std::fs::read_to_string(&one.value).ok();
            match text.or_else(|| std::fs::read_to_string(beside?).ok()) {
                Some(text) => {
                    let lines =
                        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
                    people.extend(lines.map(|address| json!({"email": address})));
                }
                None => self.remark(
                    &one,
                    "it cannot be read here: write its addresses as `email` criteria of the policy",
                ),
            }
        }
        let named = ["allowed_group", "keycloak_group"].into_iter().flat_map(|name| self.take(name));
        let mut groups: Vec<Value> = named.map(|one| json!({"groups": one.value})).collect();
        for one in self.take("allowed_role") {
            let (claim, role) = match one.value.split_once(':') {
                Some((client, role)) => (format!("claim/resource_access/{client}/roles"), role),
                None => ("claim/realm_access/roles".into(), one.value.as_str()),
            };
            groups.push(json!({claim: role}));
        }
        if is_anybody {
            // Anybody who has an address: it needs one, that is not said to be unverified.
            people = vec![json!({"email": {"contains": "@"}})];
        }
        // Where addresses are listed, and it lists none, groups let nobody in either.
        if is_closed || (is_listed && people.is_empty()) {
            return nobody();
        }
        // One of each is needed there: an address, a group, and the organisation or team that the provider is asked for.
        let mut needed: Vec<Vec<Value>> = [people, groups, within].into();
        needed.retain(|one| !one.is_empty());
        match needed.as_slice() {
            // Whom oauth2-proxy would not start for.
            [] => nobody(),
            [one] => vec![json!({"allow": {"or": one}})],
            several => {
                let start = vec![Vec::new()];
                let all = several.iter().fold(start, |ways, one| {
                    ways.iter()
                        .flat_map(|way| one.iter().map(move |next| [&way[..], &[next]].concat()))
                        .collect()
                });
                all.into_iter().map(|way| json!({"allow": {"and": way}})).collect()
            }
        }
    }

    /// Networks from which everybody passes, where the caller's address is known as well as there.
    pub(super) fn trusted(&mut self) -> Vec<Value> {
        let trusted = self.take("trusted_ip");
        let last =
            |name: &str| self.options.get(name).and_then(|all| all.last()).map(|one| one.value.clone());
        let is_behind = self.is_behind_a_proxy;
        let is_told = self.settings.iter().any(|(key, _)| *key == "trusted_proxies")
            && last("real_client_ip_header").is_some_and(|name| name.eq_ignore_ascii_case("X-Forwarded-For"));
        if is_behind && !is_told {
            for one in &trusted {
                self.remark(one, "not written, for the caller's address is not known as it is there: with trusted_proxies, and a proxy that sends X-Forwarded-For (not X-Real-IP), add `source_ip` to the policy; without them it would be the proxy's own address");
            }
            return Vec::new();
        }
        trusted.iter().map(|one| json!({"source_ip": one.value})).collect()
    }
}
