//! What stands on the pages.

use askama::Template;

use crate::authenticate::Choice;

/// A name and a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// What it says.
    pub value: String,
}

/// An application that the caller may open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// What it is for.
    pub description: String,
}

/// A way to go on.
pub(super) struct Action<'a> {
    pub(super) label: &'a str,
    pub(super) href: String,
    pub(super) primary: bool,
}

#[derive(Template)]
#[template(path = "message.html", config = "src/pages/askama.toml")]
pub(super) struct MessagePage<'a> {
    pub(super) style: &'static str,
    pub(super) title: &'a str,
    pub(super) message: &'a str,
    pub(super) advice: Option<&'a str>,
    pub(super) said: Option<&'a str>,
    pub(super) facts: &'a [Fact],
    pub(super) actions: &'a [Action<'a>],
    pub(super) contact: Option<&'a str>,
    pub(super) request_id: &'a str,
}

#[derive(Template)]
#[template(path = "user.html", config = "src/pages/askama.toml")]
pub(super) struct UserPage<'a> {
    pub(super) style: &'static str,
    pub(super) name: &'a str,
    pub(super) facts: &'a [Fact],
    pub(super) claims: &'a [Fact],
    pub(super) applications: &'a [Application],
    pub(super) request_id: &'a str,
}

#[derive(Template)]
#[template(path = "choose.html", config = "src/pages/askama.toml")]
pub(super) struct ChoosePage<'a> {
    pub(super) style: &'static str,
    pub(super) script: &'static str,
    pub(super) key: &'a str,
    pub(super) choices: &'a [Choice],
    pub(super) contact: Option<&'a str>,
    pub(super) request_id: &'a str,
}

#[derive(Template)]
#[template(path = "carry.html", config = "src/pages/askama.toml")]
pub(super) struct CarryPage<'a> {
    pub(super) style: &'static str,
    pub(super) script: &'static str,
    pub(super) key: &'a str,
    pub(super) to: &'a str,
    pub(super) step: &'static str,
}

#[derive(Template)]
#[template(path = "resume.html", config = "src/pages/askama.toml")]
pub(super) struct ResumePage<'a> {
    pub(super) style: &'static str,
    pub(super) action: &'a str,
    pub(super) fields: &'a [(String, String)],
    pub(super) request_id: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_only_text() {
        let hostile = "\"><svg/onload=alert(1)>'";
        let page = MessagePage {
            style: "",
            title: hostile,
            message: hostile,
            advice: Some(hostile),
            said: Some(hostile),
            facts: &[Fact { name: hostile.into(), value: hostile.into() }],
            actions: &[Action { label: hostile, href: hostile.into(), primary: true }],
            contact: Some(hostile),
            request_id: hostile,
        };
        let form = ResumePage {
            style: "",
            action: hostile,
            fields: &[(hostile.into(), hostile.into())],
            request_id: hostile,
        };
        let carried = CarryPage { style: "", script: "", key: hostile, to: hostile, step: "keep" };
        for text in [page.render().unwrap(), form.render().unwrap(), carried.render().unwrap()] {
            assert!(!text.contains("<svg"), "{text}");
            assert!(!text.contains("\"\"><") && !text.contains("alert(1)>'"), "{text}");
        }
    }
}
