//! Connections that outlive a change of the authorities of client certificates.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::client_certificates::{Authority, Card, authority, issue, params};
use crate::rig::{self, HTTPS, Rig, Setup, self_signed, write_certificate};

const HOST: &str = "open.localhost";

/// Asked for everywhere, of authorities in a file.
struct Asking {
    rig: Rig,
    directory: tempfile::TempDir,
    ours: Authority,
    theirs: Authority,
    card: Card,
    their_card: Card,
}

impl Asking {
    fn start(enforcement: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let (card, their_card) =
            (issue(at, "card", &params(1), &ours, &[]), issue(at, "theirs", &params(2), &theirs, &[]));
        std::fs::write(at.join("ca.pem"), ours.pem()).unwrap();
        let (cert, key) = write_certificate(at, "server", &self_signed(HOST));
        let settings = format!(
            "{HTTPS}\ncertificate_file: {cert}\ncertificate_key_file: {key}\n\
             downstream_mtls:\n  ca_file: {}\n  enforcement: {enforcement}",
            at.join("ca.pem").display()
        );
        let routes = format!(
            "\n  - from: https://{HOST}\n    to: http://UPSTREAM\n    allow_public_unauthenticated_access: true\n"
        );
        let rig = Rig::with(Setup { settings, routes, ..Setup::default() });
        Self { rig, directory, ours, theirs, card, their_card }
    }

    fn believe(&self, authorities: &[&Authority]) {
        let all: String = authorities.iter().map(|one| one.pem()).collect();
        let said = self.rig.reads(|| std::fs::write(self.directory.path().join("ca.pem"), all).unwrap());
        assert_eq!(said["last_reload"]["success"], true, "{said}");
    }

    fn connect(&self, card: Option<&Card>) -> Kept {
        Kept::connect(&self.rig, &self.directory.path().join("server.pem"), card)
    }
}

/// A connection that is kept.
struct Kept(StreamOwned<ClientConnection, TcpStream>);

impl Kept {
    fn connect(rig: &Rig, server: &Path, card: Option<&Card>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(server).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match card {
            Some(card) => config
                .with_client_auth_cert(
                    CertificateDer::pem_file_iter(&card.chain).unwrap().map(Result::unwrap).collect(),
                    PrivateKeyDer::from_pem_file(&card.key).unwrap(),
                )
                .unwrap(),
            None => config.with_no_client_auth(),
        };
        let connection = ClientConnection::new(Arc::new(config), ServerName::try_from(HOST).unwrap());
        let stream = rig.server.connect();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self(StreamOwned::new(connection.unwrap(), stream))
    }

    /// The status, and whether the connection is closed by it.
    fn get(&mut self) -> (u16, bool) {
        write!(self.0, "GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap();
        self.0.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
        let closes = head.contains("\r\nconnection: close\r\n");
        if closes {
            assert!(matches!(self.0.read(&mut byte), Ok(0) | Err(_)), "it is closed as it was said");
        }
        (head[9..12].parse().unwrap(), closes)
    }
}

#[test]
fn a_certificate_that_is_good_now_is_not_asked_for_again() {
    for (enforcement, none, bad, outdated) in [
        ("policy", Some((200, false)), (200, false), (200, true)),
        ("policy_with_default_deny", Some((495, false)), (495, false), (495, true)),
        ("reject_connection", None, (0, true), (421, true)),
    ] {
        let asking = Asking::start(enforcement);
        let Asking { ours, theirs, card, their_card, .. } = &asking;
        let (mut holder, mut next) = (asking.connect(Some(card)), asking.connect(Some(card)));
        assert_eq!((holder.get(), next.get()), ((200, false), (200, false)), "{enforcement}");
        let mut nobody = none.map(|expected| {
            let mut kept = asking.connect(None);
            assert_eq!(kept.get(), expected, "{enforcement}");
            kept
        });
        let mut stranger = none.map(|_| {
            let mut kept = asking.connect(Some(their_card));
            assert_eq!(kept.get(), bad, "{enforcement}");
            kept
        });
        // One more, and the order changes too.
        asking.believe(&[theirs, ours]);
        assert_eq!((holder.get(), holder.get()), ((200, false), (200, false)), "{enforcement}");
        if let Some(stranger) = &mut stranger {
            assert_eq!(stranger.get(), (200, false), "{enforcement}: it is good now");
        }
        if let (Some(nobody), Some((status, _))) = (&mut nobody, none) {
            assert_eq!(nobody.get(), (status, true), "{enforcement}: it may have one of theirs");
            assert_eq!(asking.connect(None).get(), (status, false), "{enforcement}");
        }
        // And one less.
        asking.believe(&[theirs]);
        assert_eq!(holder.get(), outdated, "{enforcement}");
        assert_eq!(next.get(), outdated, "{enforcement}: not used in between");
        if let Some(stranger) = &mut stranger {
            assert_eq!((stranger.get(), stranger.get()), ((200, false), (200, false)), "{enforcement}");
        }
        assert_eq!(asking.connect(Some(their_card)).get(), (200, false), "{enforcement}");
    }
}

#[test]
fn what_lasts_goes_on_while_its_certificate_is_good() {
    for (enforcement, without, is_cut) in [
        ("policy", true, false),
        ("policy_with_default_deny", false, true),
        ("reject_connection", false, true),
    ] {
        let asking = Asking::start(enforcement);
        let Asking { rig, ours, theirs, card, .. } = &asking;
        rig.upstream.greets_later(Duration::from_secs(3));
        let both = ["--cert", &card.chain, "--key", &card.key];
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| rig::curl(rig, HOST, "/", &both).0);
            let nobody = without.then(|| scope.spawn(|| rig::curl(rig, HOST, "/", &[]).0));
            std::thread::sleep(Duration::from_millis(300));
            asking.believe(&[theirs, ours]);
            for (who, got) in [("holder", Some(holder)), ("nobody", nobody)] {
                let Some(got) = got else { continue };
                assert_eq!(got.join().unwrap(), "helloworld", "{enforcement}: {who}");
            }
            let holder = scope.spawn(|| rig::curl(rig, HOST, "/", &both).0);
            std::thread::sleep(Duration::from_millis(300));
            asking.believe(&[theirs]);
            assert_eq!(holder.join().unwrap() == "hello", is_cut, "{enforcement}");
        });
    }
}
