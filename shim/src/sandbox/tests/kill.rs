//! Guests that don't kill what they are asked to kill.

use super::*;
use crate::sandbox::kill::{END_PATIENCE, END_PATIENCE_BESIDE_OTHERS};

/// So much time goes by at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

impl Fixture {
    async fn run(&self, new: NewContainer) {
        let id = new.id.clone();
        self.sandbox.create(new).await.unwrap();
        self.sandbox.start(&id).await.unwrap();
    }

    fn runs(&self, id: &str) -> bool {
        self.sandbox.state(id, "").unwrap().phase == Phase::Running
    }

    async fn has_ended(&self, id: &str) {
        let exit = tokio::time::timeout(Duration::from_secs(20), self.sandbox.wait(id, ""));
        assert_eq!(exit.await.expect("it ends").unwrap().status, 137);
        self.sandbox.delete(id, "").await.unwrap();
    }
}

#[tokio::test]
async fn what_a_guest_does_not_kill_ends_with_its_machine() {
    for (id, answer) in [("deaf", true), ("denied", false)] {
        let f = fixture().await;
        f.run(f.container(id, "sh")).await;
        f.sandbox.kill(id, "", 15, false).await.err();
        pass(END_PATIENCE * 2).await;
        assert!(f.runs(id), "it may live on after any other signal");
        assert_eq!(f.sandbox.kill(id, "", 9, false).await.is_ok(), answer);
        pass(END_PATIENCE * 2 / 3).await;
        assert!(f.runs(id));
        pass(END_PATIENCE / 2).await;
        f.has_ended(id).await;
    }
}

#[tokio::test]
async fn where_a_guest_does_not_answer_its_machine_is_stopped_at_once() {
    let f = fixture().await;
    f.run(f.container("hung", "sh")).await;
    f.sandbox.kill("hung", "", 9, true).await.unwrap();
    f.has_ended("hung").await;
}

#[tokio::test]
async fn one_container_of_several_has_longer_and_ends_all_the_same() {
    for id in ["deaf", "hung"] {
        let f = fixture().await;
        f.run(f.member("other", "sh", false)).await;
        f.run(f.member(id, "sh", false)).await;
        f.sandbox.kill(id, "", 9, false).await.unwrap();
        pass(END_PATIENCE_BESIDE_OTHERS * 2 / 3).await;
        assert!(f.runs("other") && f.runs(id));
        pass(END_PATIENCE_BESIDE_OTHERS / 2).await;
        f.has_ended(id).await;
        f.has_ended("other").await;
    }
}
