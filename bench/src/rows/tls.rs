//! TLS handshakes.

use super::Round;
use crate::cpu::{Serves, Spending};
use crate::goals::{self, Goal};
use crate::report::{Report, Who};
use crate::stage::Stage;
use crate::way::Way;
use anyhow::{Result, ensure};
use rustls::HandshakeKind;

/// In one run, one after the other.
const HANDSHAKES: u32 = 1000;

/// Connections on which nothing else is done. Those to the daemon begin with CONNECT, which is counted.
pub(crate) fn handshakes(stage: &Stage) -> Result<Round<'_>> {
    let (nginx, darter) = (stage.to_nginx(true)?, stage.to_darter(true)?);
    Ok(Box::new(move |report, _| {
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let goal = match kind {
                HandshakeKind::Resumed => goals::HANDSHAKE_RESUMED,
                _ => goals::HANDSHAKE_FULL,
            };
            measure(report, goal, Who::Nginx, (&nginx, kind), &stage.origin)?;
            measure(report, goal, Who::Darter, (&darter, kind), &stage.darter)?;
        }
        Ok(())
    }))
}

fn measure(
    report: &mut Report,
    goal: Goal,
    who: Who,
    (way, kind): (&Way, HandshakeKind),
    serving: &dyn Serves,
) -> Result<()> {
    // The first one brings tickets for the others.
    let way = way.anew();
    shake(&way)?;
    let serving = [serving];
    let spending = Spending::of(&serving)?;
    for _ in 0..HANDSHAKES {
        let done = match kind {
            HandshakeKind::Resumed => shake(&way)?,
            _ => shake(&way.anew())?,
        };
        ensure!(done == kind, "a handshake of another kind: {done:?}");
    }
    report.add(goal, who, spending.so_far()?.as_secs_f64() * 1e3 / f64::from(HANDSHAKES));
    Ok(())
}

/// A connection up to its tickets, which come after the handshake.
fn shake(way: &Way) -> Result<HandshakeKind> {
    let mut session = way.session(way.dial()?)?;
    while session.conn.is_handshaking() {
        session.conn.complete_io(&mut session.sock)?;
    }
    session.conn.read_tls(&mut session.sock)?;
    session.conn.process_new_packets()?;
    session.conn.handshake_kind().ok_or_else(|| anyhow::anyhow!("no handshake"))
}
