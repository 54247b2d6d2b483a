//! What an operator writes.

use std::path::Path;

/// A configuration file.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let check = || darter::check_configuration(Path::new("darter.yaml"), text);
    let said = check();
    assert_eq!(check(), said, "the same file is the same again");
    let (Ok(lines) | Err(lines)) = &said;
    assert!(said.is_ok() || !lines.is_empty(), "what is refused is refused for a reason");
    // YAML breaks lines at a carriage return, too.
    let end = text.replace("\r\n", "\n").split(['\n', '\r']).count() + 1;
    for line in lines {
        assert!(!line.contains(char::is_control), "a sentence is one line: {line:?}");
        let mut at = line.splitn(4, ':').skip(1).map(str::parse::<usize>);
        let (Some(Ok(number)), Some(Ok(column))) = (at.next(), at.next()) else {
            panic!("{line:?} is nowhere")
        };
        assert!((1..=end).contains(&number) && column >= 1, "{line:?} lies outside");
    }
}
