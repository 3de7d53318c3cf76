//! What the example shows.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use users::{Database, Server, User, Users};

fn users() -> Users {
    Users::new(Database::in_memory(1_000).unwrap(), 1_000, Duration::from_secs(3600))
}

#[test]
fn many_users_are_one_query_and_then_none() {
    let users = users();
    let ids: Vec<i64> = (0..30).collect();
    let found = users.get_many(&ids).unwrap();
    for (id, user) in ids.iter().zip(&found) {
        assert_eq!(user.as_ref().map(|user| user.name.clone()), (id % 10 != 9).then(|| format!("user {id}")));
    }
    assert_eq!(users.database().asked(), (1, 30));
    users.get_many(&ids).unwrap();
    assert_eq!(users.get(5).unwrap().unwrap().name, "user 5");
    assert_eq!(users.database().asked(), (1, 30));
}

#[test]
fn clients_whose_ids_overlap_ask_for_each_id_once() {
    let users = users();
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for client in 0..8_i64 {
            let (users, start) = (&users, &start);
            scope.spawn(move || {
                let ids: Vec<i64> = (0..100).map(|n| (n + 13 * client) % 100).collect();
                start.wait();
                assert_eq!(users.get_many(&ids).unwrap().iter().flatten().count(), 90);
            });
        }
    });
    assert_eq!(users.database().asked().1, 100);
}

#[test]
fn a_new_name_is_seen() {
    let users = users();
    assert_eq!(users.get(1).unwrap().unwrap().name, "user 1");
    users.rename(1, "Ada").unwrap();
    assert_eq!(users.get(1).unwrap().unwrap().name, "Ada");
}

#[test]
fn sixty_four_clients_of_the_server_ask_for_each_id_once() {
    let users = Arc::new(users());
    let server = Server::start(Arc::clone(&users)).unwrap();
    let start = Barrier::new(64);
    thread::scope(|scope| {
        for client in 0..64_i64 {
            let (server, start) = (&server, &start);
            scope.spawn(move || {
                let ids: Vec<i64> = (0..100).map(|n| (n + 13 * client) % 100).collect();
                start.wait();
                let found: Vec<Option<User>> =
                    ureq::get(server.url(&ids)).call().unwrap().body_mut().read_json().unwrap();
                for (id, user) in ids.iter().zip(found) {
                    assert_eq!(user.map(|user| user.name), (id % 10 != 9).then(|| format!("user {id}")));
                }
            });
        }
    });
    assert_eq!((users.database().asked().1, users.cache().stats().builds), (100, 100));
    let error = ureq::get(format!("{}x", server.url(&[1]))).call().unwrap_err();
    assert!(matches!(error, ureq::Error::StatusCode(400)), "{error}");
}
