//! Where sessions are kept.

use super::{Resolver, Services};
use crate::authenticate::Secret;
use crate::clock::Clock;
use crate::store::{PostgresStore, RedisStore};

/// `databroker_storage_type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Sessions end with the process.
    Memory,
    /// Sessions are kept in a file in `state_dir`.
    File,
    /// Sessions are in Redis, which several processes share.
    Redis(Connection),
    /// Sessions are in PostgreSQL, which several processes share.
    Postgres(Connection),
}

/// Where the store is, when it is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// `databroker_storage_connection_string`, which may hold a password.
    pub text: Secret,
    /// Trust roots for it instead of the system's, PEM.
    pub roots: Option<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    File,
    Redis,
    Postgres,
}

/// The key that says where.
const CONNECTION: &str = "databroker_storage_connection_string";

impl Resolver<'_> {
    /// `None`: a file if `state_dir` can be written; and where `services` has no authorize, for what only asks keeps no
    /// session. It may have the configuration, but not the secrets, of the process that it asks.
    pub(super) fn storage(&mut self, services: Services) -> Option<Storage> {
        let possible = [
            ("memory", Kind::Memory),
            ("file", Kind::File),
            ("redis", Kind::Redis),
            ("postgres", Kind::Postgres),
        ];
        let file = self.file;
        let kind = self.one_of("databroker_storage_type", file.databroker_storage_type.as_ref(), &possible);
        if !services.authorize {
            return None;
        }
        let typed = self.secret_value(
            CONNECTION,
            file.databroker_storage_connection_string.as_ref(),
            file.databroker_storage_connection_string_file.as_ref(),
        );
        if !matches!(kind, Some(Kind::Redis | Kind::Postgres)) && typed.is_some() {
            let message =
                "this key has no effect here: databroker_storage_type keeps sessions in this process";
            self.warn(CONNECTION, message);
        }
        match kind? {
            Kind::Memory => Some(Storage::Memory),
            Kind::File => Some(Storage::File),
            Kind::Redis => {
                let connection = self.connection(typed, "redis://host:6379/0", |text, roots| {
                    RedisStore::new(text, roots, Clock::system()).map(drop)
                });
                connection.map(Storage::Redis)
            }
            Kind::Postgres => {
                let example = "postgres://user:password@host:5432/database";
                let connection =
                    self.connection(typed, example, |text, roots| PostgresStore::new(text, roots).map(drop));
                connection.map(Storage::Postgres)
            }
        }
    }

    /// Where the store is; `check`: whether that can be so.
    fn connection(
        &mut self,
        typed: Option<String>,
        example: &str,
        check: impl FnOnce(&str, Option<&[u8]>) -> Result<(), String>,
    ) -> Option<Connection> {
        let file = self.file;
        let Some(text) = typed else {
            self.missing(CONNECTION, &format!("{example} or the like, where the sessions are"));
            return None;
        };
        self.need_shared_secret("processes that share a store need the same one");
        let roots = self.pem(
            &[],
            "certificate_authority",
            file.certificate_authority.as_ref(),
            file.certificate_authority_file.as_ref(),
        );
        let roots = roots.flatten();
        if let Err(error) = check(&text, roots.as_deref()) {
            self.error(CONNECTION, error);
        }
        Some(Connection { text: Secret::new(text), roots })
    }
}
