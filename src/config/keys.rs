//! Keys are declared once: name, type, default and documentation. The struct, its reading, the reference and
//! the suggestions for misspelt names all come from that declaration.

/// A key, for the reference and for suggestions.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name in the file; in the environment it is in upper case.
    pub name: &'static str,
    /// Its default, as it would be typed; empty when there is none.
    pub default: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// Whether its value is a secret.
    pub secret: bool,
}

/// A struct of keys.
pub(super) trait Keys: Default {
    /// Every key, in the order of the reference.
    const KEYS: &'static [Key];

    /// Reads one key; `None` when there is no such key.
    fn set(&mut self, name: &str, value: &figment::value::Value) -> Option<Result<(), figment::Error>>;
}

/// Declares a struct of keys. A key is `name: Type = "default"`, with `secret` before it when it is one.
macro_rules! keys {
    (
        $(#[doc = $struct_doc:literal])*
        pub struct $struct:ident {
            $( $(#[doc = $doc:literal])* $([$secret:ident])? $name:ident : $type:ty = $default:literal ; )*
        }
    ) => {
        $(#[doc = $struct_doc])*
        #[derive(Clone, Debug, Default)]
        #[allow(missing_docs, reason = "each key is documented")]
        pub struct $struct {
            $( $(#[doc = $doc])* pub $name: Option<$type>, )*
        }

        impl $crate::config::keys::Keys for $struct {
            const KEYS: &'static [$crate::config::Key] = &[
                $( $crate::config::Key {
                    name: stringify!($name),
                    default: $default,
                    doc: concat!($($doc, "\n"),*),
                    secret: keys!(@secret $($secret)?),
                }, )*
            ];

            fn set(&mut self, name: &str, value: &figment::value::Value) -> Option<Result<(), figment::Error>> {
                match name {
                    $( stringify!($name) => Some(value.deserialize::<$type>().map(|value| self.$name = Some(value))), )*
                    _ => None,
                }
            }
        }
    };
    (@secret secret) => { true };
    (@secret) => { false };
}

pub(super) use keys;
