//! What is decided on later.

use super::*;

/// Holds listeners back until told.
struct Gate(watch::Receiver<Option<Result<(), ConfigError>>>);

impl Admission for Gate {
    fn admit(
        &self,
        candidate: &Candidate,
    ) -> Option<futures_util::future::BoxFuture<'static, Result<(), ConfigError>>> {
        let Candidate::Listener(_) = candidate else {
            return None;
        };
        let mut gate = self.0.clone();
        Some(Box::pin(async move {
            let verdict = gate.wait_for(Option::is_some).await.unwrap();
            verdict.clone().unwrap()
        }))
    }
}

#[tokio::test]
async fn admission_holds_its_response_back_and_nothing_else() {
    for (verdict, served) in [
        (Ok(()), true),
        (
            Err(ConfigError::invalid("traps").at("http_filters[0]")),
            false,
        ),
    ] {
        let (open, gate) = watch::channel(None);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control_plane = ControlPlane::start(socket).unwrap();
        let mut world = World::with(Mode::AdsSotw, control_plane, Arc::new(Gate(gate)));
        world.serve_basics();
        world.ack(CDS).await;
        within(world.control_plane.next_request(LDS.type_url())).await;
        world.serve(CDS, vec![cluster(world.mode, "a", "7s")], "2");
        world.ack(CDS).await;
        let unanswered = world.control_plane.events();
        assert!(
            !unanswered.iter().any(|event| matches!(event, Event::Answered(answer) if *answer.type_url == *LDS.type_url())),
            "{unanswered:?}"
        );
        open.send_replace(Some(verdict));
        if served {
            world.ack(LDS).await;
            world
                .until(|snapshot| snapshot.listeners.contains_key("l"))
                .await;
        } else {
            assert_eq!(
                world.nack(LDS).await,
                "Error adding/updating listener(s) l: http_filters[0]: traps\n"
            );
            assert!(world.snapshots.borrow().listeners.is_empty());
        }
    }
}
