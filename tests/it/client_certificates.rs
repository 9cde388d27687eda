//! Client certificates: which are asked for, which are good, and what becomes of everybody else.

use std::path::Path;
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, OtherNameValue, RevocationReason,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

use crate::rig::{self, HTTPS, Rig, Setup};

pub type Authority = CertifiedIssuer<'static, KeyPair>;

const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub fn authority(name: &str) -> Authority {
    CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap()
}

/// An authority below another.
fn below(above: &Authority, name: &str) -> Authority {
    CertifiedIssuer::signed_by(authority_params(name), KeyPair::generate().unwrap(), above).unwrap()
}

pub fn params(serial: u64) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["Laptop.Example.Test".to_owned()]).unwrap();
    params.subject_alt_names.extend([
        SanType::Rfc822Name("jane@example.test".try_into().unwrap()),
        SanType::URI("spiffe://example.test/jane".try_into().unwrap()),
        SanType::IpAddress("192.0.2.7".parse().unwrap()),
        SanType::OtherName((
            vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3],
            OtherNameValue::Utf8String("jane@corp.example.test".into()),
        )),
    ]);
    params.distinguished_name.push(DnType::CommonName, "jane");
    params.serial_number = Some(SerialNumber::from(serial));
    params.extended_key_usages = vec![CLIENT];
    params
}

/// What curl shows: a chain and a key, in files.
#[derive(Clone)]
pub struct Card {
    pub chain: String,
    pub key: String,
}

pub fn issue(
    directory: &Path,
    name: &str,
    params: &CertificateParams,
    by: &Authority,
    between: &[&Authority],
) -> Card {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, by).unwrap();
    let chain: String =
        std::iter::once(certificate.pem()).chain(between.iter().map(|one| one.pem())).collect();
    let path = |end: &str| directory.join(format!("{name}.{end}"));
    std::fs::write(path("pem"), chain).unwrap();
    std::fs::write(path("key"), key.serialize_pem()).unwrap();
    Card { chain: path("pem").display().to_string(), key: path("key").display().to_string() }
}

pub fn revocation_list(by: &Authority, serials: &[u64], until: i32) -> String {
    let revoked = serials.iter().map(|serial| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    });
    CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(until, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(by)
    .unwrap()
    .pem()
    .unwrap()
}

/// The status, and the body or what curl complains about.
fn curl(rig: &Rig, sni: &str, path: &str, card: Option<&Card>, more: &[&str]) -> (u16, String) {
    let mut arguments = vec!["-w", "\n%{http_code}"];
    if let Some(card) = card {
        arguments.extend(["--cert", &card.chain, "--key", &card.key]);
    }
    arguments.extend(more);
    let (out, complaint) = rig::curl(rig, sni, path, &arguments);
    let (body, status) = out.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), format!("{body}{complaint}"))
}

const ROUTES: &str = "
  - from: https://open.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
  - from: https://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true
";

fn rig(mtls: &str, routes: &str) -> Rig {
    let settings = format!("{HTTPS}\n{mtls}");
    Rig::with(Setup { settings, routes: routes.into(), ..Setup::default() })
}

fn mtls(directory: &Path, authorities: &[&Authority], more: &str) -> String {
    let file = directory.join("ca.pem");
    std::fs::write(&file, authorities.iter().map(|one| one.pem()).collect::<String>()).unwrap();
    format!("downstream_mtls:\n  ca_file: {}\n{more}", file.display())
}

/// Waits for the last decision to be recorded: a refusal for just these reasons.
fn expect_reasons(rig: &Rig, expected: &[&str], what: &str) {
    let mut last = serde_json::Value::Null;
    for _ in 0..200 {
        let records = rig.server.records();
        let decision = records.into_iter().rfind(|record| record["message"] == "authorize-check");
        last = decision.unwrap_or_default();
        if last["allow"] == false && last["reasons"] == serde_json::json!(expected) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{what}: expected {expected:?}, got {last}");
}

#[test]
fn only_who_shows_a_good_certificate_comes_further_and_is_asked_to_sign_in_after_that() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let rig = rig(&mtls(at, &[&ours], ""), ROUTES);
    let good = issue(at, "good", &params(1), &ours, &[]);
    let dated = |name: &str, from: i32, to: i32| {
        let mut params = params(2);
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        issue(at, name, &params, &ours, &[])
    };
    let mut for_servers = params(3);
    for_servers.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut for_all = params(4);
    for_all.extended_key_usages.clear();
    let as_authority = authority_params("self");
    let middle = below(&ours, "middle");
    let bad = [
        ("of another authority", issue(at, "theirs", &params(1), &theirs, &[])),
        ("expired", dated("expired", 2020, 2021)),
        ("not yet valid", dated("early", 2090, 2091)),
        ("for servers", issue(at, "servers", &for_servers, &ours, &[])),
        ("an authority's own", issue(at, "authority", &as_authority, &ours, &[])),
        ("too far from the authority", issue(at, "far", &params(5), &middle, &[&middle])),
        ("its chain is not all there", issue(at, "gap", &params(6), &middle, &[])),
    ];
    for host in ["open.localhost", "app.localhost"] {
        for arguments in [&["--http2"][..], &["--http1.1"], &["--tls-max", "1.2"]] {
            let (status, body) = curl(&rig, host, "/", None, arguments);
            assert_eq!(status, 495, "{host} {body}");
            expect_reasons(&rig, &["client-certificate-required"], host);
        }
        for (what, card) in &bad {
            let (status, body) = curl(&rig, host, "/", Some(card), &[]);
            assert_eq!(status, 495, "{what} {host} {body}");
            expect_reasons(&rig, &["invalid-client-certificate"], what);
        }
    }
    assert_eq!(rig.upstream.seen(), "");
    for arguments in [&["--http2"][..], &["--http1.1"], &["--tls-max", "1.2"]] {
        assert_eq!(curl(&rig, "open.localhost", "/", Some(&good), arguments), (200, "ok".into()));
        assert_eq!(curl(&rig, "app.localhost", "/", Some(&good), arguments).0, 302);
    }
    let unrestricted = issue(at, "all", &for_all, &ours, &[]);
    assert_eq!(curl(&rig, "open.localhost", "/", Some(&unrestricted), &[]).0, 200);
    // A page for people, JSON for programs; neither is stored, and nobody is told what else there is.
    let (status, page) = curl(&rig, "app.localhost", "/", None, &["-H", "Accept: text/html"]);
    assert_eq!(status, 495);
    assert!(page.contains("certificate") && !page.contains("sign_in"), "{page}");
    let (_, json) = curl(&rig, "app.localhost", "/", None, &["-H", "Accept: application/json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["error"].as_str().unwrap().contains("client certificate") && json["request_id"].is_string());
    // What is our own needs none: it serves no application.
    assert_eq!(curl(&rig, "open.localhost", "/.well-known/pomerium/jwks.json", None, &[]).0, 200);
    assert!(!rig.server.raw_log().contains("PRIVATE"));
}

#[test]
fn a_chain_may_be_as_long_as_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let ours = authority("ours");
    let one = below(&ours, "one");
    let two = below(&one, "two");
    let cards = [
        issue(at, "direct", &params(1), &ours, &[]),
        issue(at, "one", &params(2), &one, &[&one]),
        issue(at, "two", &params(3), &two, &[&two, &one]),
    ];
    for (depth, passes) in
        [("", 1), ("max_verify_depth: 1", 1), ("max_verify_depth: 2", 2), ("max_verify_depth: 0", 3)]
    {
        let rig = rig(&mtls(at, &[&ours], &format!("  {depth}\n")), ROUTES);
        for (count, card) in cards.iter().enumerate() {
            let expected = if count < passes { 200 } else { 495 };
            assert_eq!(curl(&rig, "open.localhost", "/", Some(card), &[]).0, expected, "{depth} {count}");
        }
    }
}

#[test]
fn a_revoked_certificate_is_none_and_a_list_that_is_out_of_date_vouches_for_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (ours, others) = (authority("ours"), authority("others"));
    let middle = below(&ours, "middle");
    let (good, bad) = (issue(at, "good", &params(1), &ours, &[]), issue(at, "bad", &params(2), &ours, &[]));
    let other = issue(at, "other", &params(2), &others, &[]);
    let far = issue(at, "far", &params(2), &middle, &[&middle]);
    let file = at.join("crl.pem");
    let crl = format!("  crl_file: {}\n  max_verify_depth: 2\n", file.display());
    for (lists, good_status, bad_status, other_status, far_status) in [
        // Whose authority has no list is not asked for one.
        (revocation_list(&ours, &[2], 2090), 200, 495, 200, 495),
        (revocation_list(&ours, &[2], 2025), 495, 495, 200, 495),
        (revocation_list(&others, &[2], 2090), 200, 200, 495, 200),
        (revocation_list(&ours, &[], 2090) + &revocation_list(&others, &[2], 2090), 200, 200, 495, 495),
        (revocation_list(&ours, &[2], 2090) + &revocation_list(&middle, &[], 2090), 200, 495, 200, 200),
        (revocation_list(&ours, &[], 2090) + &revocation_list(&middle, &[2], 2090), 200, 200, 200, 495),
    ] {
        std::fs::write(&file, &lists).unwrap();
        let rig = rig(&mtls(at, &[&ours, &others], &crl), ROUTES);
        let status = |card| curl(&rig, "open.localhost", "/", Some(card), &[]).0;
        let all = [status(&good), status(&bad), status(&other), status(&far)];
        assert_eq!(all, [good_status, bad_status, other_status, far_status], "{lists}");
    }
}

#[test]
fn a_certificate_needs_one_of_the_names_that_are_wanted_and_all_of_that_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let ours = authority("ours");
    let card = issue(at, "card", &params(1), &ours, &[]);
    for (wanted, expected) in [
        ("dns: laptop\\.example\\.test", 200),
        ("dns: '.*\\.example\\.test'", 200),
        ("dns: laptop", 495),
        ("dns: example\\.test", 495),
        ("dns: 'x|laptop.*'", 200),
        ("dns: 'laptop|x'", 495),
        ("email: jane@example\\.test", 200),
        ("email: jane@corp\\.example\\.test", 495),
        ("uri: spiffe://example\\.test/.*", 200),
        ("uri: spiffe://example", 495),
        ("ip_address: 192\\.0\\.2\\.7", 200),
        ("ip_address: 192\\.0\\.2", 495),
        ("user_principal_name: jane@corp\\.example\\.test", 200),
        ("user_principal_name: jane@example\\.test", 495),
        ("dns: nobody\n    - email: jane@.*", 200),
    ] {
        let names = format!("  match_subject_alt_names:\n    - {wanted}\n");
        let rig = rig(&mtls(at, &[&ours], &names), ROUTES);
        assert_eq!(curl(&rig, "open.localhost", "/", Some(&card), &[]).0, expected, "{wanted}");
    }
}

fn hashes(card: &Card) -> (String, String) {
    let run = |script: String| {
        let done = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    let fingerprint =
        run(format!("openssl x509 -noout -fingerprint -sha256 -in {} | cut -d= -f2", card.chain));
    let spki = run(format!(
        "openssl x509 -noout -pubkey -in {} | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | openssl base64",
        card.chain
    ));
    assert_eq!((fingerprint.len(), spki.len()), (95, 44));
    (fingerprint, spki)
}

#[test]
fn policies_look_at_certificates_and_an_untrusted_one_opens_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let good = issue(at, "good", &params(1), &ours, &[]);
    let other = issue(at, "other", &params(2), &ours, &[]);
    let forged = issue(at, "forged", &params(1), &theirs, &[]);
    let ((fingerprint, spki), (forged_print, _)) = (hashes(&good), hashes(&forged));
    let route = |criterion: &str| {
        format!(
            "
  - from: https://open.localhost
    to: http://UPSTREAM
    policy: [{{allow: {{and: [{{client_certificate: {{{criterion}}}}}]}}}}]
"
        )
    };
    for (criterion, good_passes, other_passes) in [
        (format!("fingerprint: '{fingerprint}'"), true, false),
        (format!("fingerprint: {}", fingerprint.replace(':', "").to_lowercase()), true, false),
        (format!("fingerprint: ['{forged_print}', '{fingerprint}']"), true, false),
        (format!("spki_hash: {spki}"), true, false),
        (format!("spki_hash: ['{spki}']"), true, false),
        (format!("fingerprint: '{forged_print}'"), false, false),
        ("san_dns: LAPTOP.example.test".into(), true, true),
        ("san_dns: {ends_with: .example.test}".into(), true, true),
        ("san_dns: {not: laptop.example.test}".into(), false, false),
        ("san_email: jane@example.test".into(), true, true),
        ("san_uri: {starts_with: 'spiffe://example.test/'}".into(), true, true),
        (format!("san_email: jane@example.test, fingerprint: '{fingerprint}'"), true, false),
        ("san_email: john@example.test".into(), false, false),
    ] {
        let rig = rig(&mtls(at, &[&ours], "  enforcement: policy\n"), &route(&criterion));
        let status = |card| curl(&rig, "open.localhost", "/", card, &[]).0;
        let code = |passes| if passes { 200 } else { 403 };
        assert_eq!(status(Some(&good)), code(good_passes), "{criterion}");
        assert_eq!(status(Some(&other)), code(other_passes), "{criterion}");
        // Its key is theirs, its names are the same.
        assert_eq!(status(Some(&forged)), 403, "{criterion}");
        expect_reasons(&rig, &["client-certificate-unauthorized"], &criterion);
        assert_eq!(status(None), 403, "{criterion}");
        expect_reasons(&rig, &["client-certificate-unauthorized"], &criterion);
    }
    let deny = format!(
        "
  - from: https://open.localhost
    to: http://UPSTREAM
    policy: [{{deny: {{or: [{{client_certificate: {{fingerprint: '{forged_print}'}}}}]}}}}, {{allow: {{or: [accept: true]}}}}]
  - from: https://app.localhost
    to: http://UPSTREAM
    policy: [{{deny: {{or: [invalid_client_certificate: true]}}}}, {{allow: {{or: [accept: true]}}}}]
"
    );
    let rig = rig(&mtls(at, &[&ours], "  enforcement: policy\n"), &deny);
    let status = |host, card| curl(&rig, host, "/", card, &[]).0;
    assert_eq!(
        [
            status("open.localhost", Some(&good)),
            status("open.localhost", None),
            status("open.localhost", Some(&forged))
        ],
        [200, 200, 403]
    );
    assert_eq!(
        [
            status("app.localhost", Some(&good)),
            status("app.localhost", None),
            status("app.localhost", Some(&forged))
        ],
        [200, 495, 495]
    );
}

#[test]
fn a_connection_without_a_good_certificate_can_be_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let (good, forged) =
        (issue(at, "good", &params(1), &ours, &[]), issue(at, "forged", &params(1), &theirs, &[]));
    let rig = rig(&mtls(at, &[&ours], "  enforcement: reject_connection\n"), ROUTES);
    for version in ["1.2", "1.3"] {
        let arguments = ["--tls-max", version];
        assert_eq!(curl(&rig, "open.localhost", "/", None, &arguments).0, 0);
        assert_eq!(curl(&rig, "open.localhost", "/", Some(&forged), &arguments).0, 0);
        assert_eq!(curl(&rig, "open.localhost", "/.well-known/pomerium/jwks.json", None, &arguments).0, 0);
        assert_eq!(curl(&rig, "open.localhost", "/", Some(&good), &arguments).0, 200);
    }
    assert!(rig.server.raw_log().contains("comes from an authority that is not trusted here"));
}

/// Asks in one connection whose name is not the one that is asked for.
fn by_way_of(rig: &Rig, sni: &str, host: &str, card: Option<&Card>) -> u16 {
    curl(rig, sni, "/", card, &["--http1.1", "-H", &format!("Host: {host}")]).0
}

#[test]
fn a_connection_that_was_asked_for_another_certificate_is_misdirected() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let (card, their_card) =
        (issue(at, "ours", &params(1), &ours, &[]), issue(at, "theirs", &params(1), &theirs, &[]));
    for (name, one) in [("ours", &ours), ("theirs", &theirs)] {
        std::fs::write(at.join(format!("{name}-ca.pem")), one.pem()).unwrap();
    }
    let place = at.display();
    let routes = format!(
        "
  - from: https://open.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
  - from: https://mtls.localhost
    to: http://UPSTREAM
    tls_downstream_client_ca_file: {place}/ours-ca.pem
    allow_public_unauthenticated_access: true
  - from: https://same.localhost
    to: http://UPSTREAM
    tls_downstream_client_ca_file: {place}/ours-ca.pem
    allow_public_unauthenticated_access: true
  - from: https://theirs.localhost
    to: http://UPSTREAM
    tls_downstream_client_ca_file: {place}/theirs-ca.pem
    allow_public_unauthenticated_access: true
  - from: https://*.wild.localhost
    to: http://UPSTREAM
    tls_downstream_client_ca_file: {place}/ours-ca.pem
    allow_public_unauthenticated_access: true
  - from: https://plain.wild.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
  - from: https://*.over.localhost
    to: http://UPSTREAM
    prefix: /ours
    tls_downstream_client_ca_file: {place}/ours-ca.pem
    allow_public_unauthenticated_access: true
  - from: https://*.x.over.localhost
    to: http://UPSTREAM
    tls_downstream_client_ca_file: {place}/theirs-ca.pem
    allow_public_unauthenticated_access: true
"
    );
    let rig = rig("", &routes);
    for (host, nobody, with_ours, with_theirs) in [
        ("open.localhost", 200, 200, 200),
        ("mtls.localhost", 495, 200, 495),
        ("same.localhost", 495, 200, 495),
        ("theirs.localhost", 495, 495, 200),
        ("a.wild.localhost", 495, 200, 495),
        ("plain.wild.localhost", 200, 200, 200),
    ] {
        let status = |card| curl(&rig, host, "/", card, &[]).0;
        assert_eq!(
            [status(None), status(Some(&card)), status(Some(&their_card))],
            [nobody, with_ours, with_theirs]
        );
    }
    let before = rig.upstream.seen();
    for (sni, host) in [
        ("open.localhost", "mtls.localhost"),
        ("open.localhost", "mtls.localhost."),
        ("open.localhost", "MTLS.localhost"),
        ("open.localhost", "a.wild.localhost"),
        ("unknown.localhost", "mtls.localhost"),
        ("plain.wild.localhost", "a.wild.localhost"),
        ("theirs.localhost", "mtls.localhost"),
        ("mtls.localhost", "theirs.localhost"),
        ("mtls.localhost", "open.localhost"),
    ] {
        for card in [None, Some(&card), Some(&their_card)] {
            assert_eq!(by_way_of(&rig, sni, host, card), 421, "{sni} {host}");
        }
    }
    // Where patterns overlap, the first one says what is asked for; a route that wants another one is not reached.
    for card in [None, Some(&card), Some(&their_card)] {
        assert_eq!(curl(&rig, "a.x.over.localhost", "/", card, &[]).0, 421);
    }
    assert_eq!(rig.upstream.seen(), before);
    assert_eq!(curl(&rig, "a.x.over.localhost", "/ours", Some(&card), &[]).0, 200);
    for (sni, host) in [
        ("mtls.localhost", "same.localhost"),
        ("same.localhost", "b.wild.localhost"),
        ("unknown.localhost", "open.localhost"),
        ("open.localhost", "plain.wild.localhost"),
    ] {
        assert_eq!(by_way_of(&rig, sni, host, Some(&card)), 200, "{sni} {host}");
    }
}

#[test]
fn no_session_of_tls_is_resumed_around_the_check() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let ours = authority("ours");
    let card = issue(at, "card", &params(1), &ours, &[]);
    let with = rig(&mtls(at, &[&ours], ""), ROUTES);
    let without = rig("", ROUTES);
    // How often each connection of five after the first one is resumed, as OpenSSL counts.
    let reused = |rig: &Rig, version: &str| {
        let session = at.join("session");
        let address = rig.server.address;
        let connect = |option: &str| {
            let script = format!(
                "printf 'GET / HTTP/1.1\\r\\nHost: open.localhost\\r\\nConnection: close\\r\\n\\r\\n' | \
                 timeout 10 openssl s_client -connect {address} -servername open.localhost {version} \
                 -cert {} -key {} -ign_eof {option} {} 2>&1",
                card.chain,
                card.key,
                session.display()
            );
            let done = Command::new("sh").args(["-c", &script]).output().unwrap();
            String::from_utf8_lossy(&done.stdout).into_owned()
        };
        let first = connect("-sess_out");
        assert!(first.contains("200 OK"), "{first}");
        // Without a ticket there is no file.
        session.exists() && connect("-sess_in").contains("Reused,")
    };
    for version in ["-tls1_2", "-tls1_3"] {
        assert!(reused(&without, version), "{version}: the test would not see it");
        let _ = std::fs::remove_file(at.join("session"));
        assert!(!reused(&with, version), "{version}");
        let _ = std::fs::remove_file(at.join("session"));
    }
}

#[test]
fn policies_are_explained_and_tested_with_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let good = issue(at, "good", &params(1), &ours, &[]);
    issue(at, "forged", &params(1), &theirs, &[]);
    let file = |name: &str| at.join(name).display().to_string();
    let settings = "idp_provider_url: https://id.example.com\nidp_client_id: x\nidp_client_secret: y\n";
    let routes = "routes:
  - from: https://app.example.com
    to: http://127.0.0.1:1
    policy: [{allow: {and: [{client_certificate: {san_email: jane@example.test}}]}}]
";
    std::fs::write(file("c.yaml"), format!("{settings}{}{routes}", mtls(at, &[&ours], ""))).unwrap();
    std::fs::write(
        file("cases.yaml"),
        "
- {name: good, request: {url: 'https://app.example.com/', client_certificate: good.pem}, expect: allow}
- {name: forged, request: {url: 'https://app.example.com/', client_certificate: forged.pem}, expect: client_certificate, reason: invalid-client-certificate}
- {name: none, request: {url: 'https://app.example.com/'}, expect: client_certificate}
- {name: later, request: {url: 'https://app.example.com/', client_certificate: good.pem, at: '5000-01-01'}, expect: client_certificate}
",
    )
    .unwrap();
    let policy = |arguments: &[&str]| {
        let done =
            Command::new(env!("CARGO_BIN_EXE_portcullis")).arg("policy").args(arguments).output().unwrap();
        let (out, err) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
        (done.status.code().unwrap(), out + &err)
    };
    let (code, said) = policy(&["test", "-c", &file("c.yaml"), &file("cases.yaml"), "--coverage"]);
    assert!(
        code == 0 && said.contains("every rule decided a case") && said.contains("4 passed, 0 failed"),
        "{said}"
    );
    let explain = |more: &[&str]| {
        let config = file("c.yaml");
        let start = ["explain", "-c", &config, "--url", "https://app.example.com/"];
        policy(&[&start, more].concat())
    };
    let (code, said) = explain(&["--client-certificate", &good.chain]);
    assert!(code == 0 && said.contains(&hashes(&good).0.replace(':', "").to_lowercase()), "{said}");
    let (code, said) = explain(&["--client-certificate", &file("forged.pem")]);
    assert!(code == 1 && said.contains("(it comes from an authority that is not trusted here)"), "{said}");
    let (code, said) = explain(&[]);
    assert!(code == 1 && said.contains("decision: client_certificate"), "{said}");
    assert_eq!(explain(&["--client-certificate", &file("good.key")]).0, 2);
}
