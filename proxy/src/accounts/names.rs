//! What a request names: the registry, the repository, and what a token request asks for.

use darter_rules::Target;
use darter_rules::oci::{self, Resource};

/// `scheme://host:port`.
pub(crate) fn registry(target: &Target) -> String {
    format!("{}://{}:{}", target.scheme().as_str(), target.host(), target.port())
}

/// The repository that a request to a registry is about. What comes close to such a request is none: its server may
/// understand another repository.
pub(super) fn repository(target: &Target) -> Option<&str> {
    if let Some(resource) = Resource::parse(target.path()) {
        return Some(resource.name);
    }
    // The other things that can be read of a repository.
    let path = target.path().strip_prefix("/v2/")?;
    let referrers = || {
        let (name, digest) = path.rsplit_once("/referrers/")?;
        oci::Digest::parse(digest).map(|_| name)
    };
    path.strip_suffix("/tags/list").or_else(referrers).filter(|name| oci::is_name(name))
}

/// The repositories of a token request that asks for nothing but pulling, now. What other parameters would bring, each
/// token service decides: `offline_token` a token that gets tokens of every scope, without end.
pub(super) fn scopes(query: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            // One parameter may hold several, separated by spaces.
            "scope" => {
                for scope in value.split_ascii_whitespace() {
                    let name = scope.strip_prefix("repository:")?.strip_suffix(":pull")?;
                    names.push(oci::is_name(name).then(|| name.to_owned())?);
                }
            }
            "service" | "client_id" | "account" if !value.contains(char::is_control) => {}
            _ => return None,
        }
    }
    (!names.is_empty()).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pulling_is_lent_for() {
        let names = |query: &str| scopes(query).map(|names| names.join(" "));
        assert_eq!(names("service=s&scope=repository:a/b:pull").as_deref(), Some("a/b"));
        assert_eq!(names("scope=repository%3Aa%3Apull+repository%3Ab%3Apull").as_deref(), Some("a b"));
        assert_eq!(names("scope=repository:a:pull&scope=repository:b:pull").as_deref(), Some("a b"));
        assert_eq!(names("account=u&client_id=docker&scope=repository:a:pull").as_deref(), Some("a"));
        for other in [
            "",
            "service=s",
            "scope=",
            "scope=repository:a:pull,push",
            "scope=repository:a:push",
            "scope=repository:a:*",
            "scope=registry:catalog:*",
            "scope=repository:a:pull&scope=repository:b:delete",
            "scope=repository:a:pull&offline_token=true",
            "scope=repository:a:pull&grant_type=password",
            "scope=repository:a:pull&service=a%0ab",
            "scope=repository:a/../b:pull",
            "scope=repository::pull",
        ] {
            assert_eq!(names(other), None, "{other}");
        }
    }

    #[test]
    fn what_names_a_repository() {
        let name = |path: &str| {
            let target = Target::parse(&format!("https://registry.example{path}")).unwrap();
            repository(&target).map(str::to_owned)
        };
        let referrers = format!("referrers/sha256:{}?artifactType=a", "0a".repeat(32));
        for path in ["manifests/latest", "tags/list?n=1", &referrers] {
            assert_eq!(name(&format!("/v2/team/app/{path}")).as_deref(), Some("team/app"), "{path}");
        }
        let long = format!("/v2/{}/tags/list", "a".repeat(60_000));
        for path in [
            "/",
            "/v2/",
            "/v2/_catalog",
            "/token?scope=repository:a:pull",
            "/v2/team/app/tags/list/../../../../b/manifests/latest",
            "/v2/team/x/../../b/tags/list",
            "/v2/team/app/referrers/sha256:00",
            &long,
        ] {
            assert_eq!(name(path), None, "{path}");
        }
    }
}
