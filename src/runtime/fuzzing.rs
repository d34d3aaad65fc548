//! Properties of what the gateway reads from guests: the handshake's line and the control stream.
#![expect(clippy::unwrap_used, reason = "a target ends by a panic")]

use crate::{
    runtime::{control, envd, link, namespace},
    wire::link::{Answer, Hello, MAX_LINE},
};

pub(crate) use control::fuzzing::conversation;
pub(crate) use envd::fuzzing::answers;

/// The first line of `data`, none where there is none; both readers of the gateway agree on it,
/// leave what follows, and every line that parses is the one that prints.
pub(crate) async fn line(data: &[u8]) -> Option<Vec<u8>> {
    let mut rest = data;
    let read = link::read_line(&mut rest).await.ok();
    let mut other_rest = data;
    let other = namespace::link::read_line(&mut other_rest).await.ok();
    assert_eq!(read, other);
    let Some(line) = read else {
        assert!(data.len() - rest.len() <= MAX_LINE, "no more is read than a line may have");
        return None;
    };
    assert_eq!(rest, other_rest);
    assert!(line.len() < MAX_LINE);
    assert_eq!([line.as_slice(), b"\n", rest].concat(), data);
    if let Ok(hello) = Hello::parse(&line) {
        assert_eq!(hello.encode().as_bytes(), [line.as_slice(), b"\n"].concat());
    }
    if let Ok(answer) = Answer::parse(&line) {
        let encoded = answer.encode();
        assert!(encoded.len() <= MAX_LINE);
        // A reason is cleaned when it is printed; once clean it stays so.
        let again = Answer::parse(encoded.strip_suffix('\n').unwrap().as_bytes()).unwrap();
        assert_eq!(again.encode(), encoded);
        assert!(matches!(answer, Answer::Err(_)) || again == answer);
    }
    Some(line)
}
