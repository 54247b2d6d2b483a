//! The cluster, event by event, in virtual time.

mod budgets;
mod content;
mod copies;
mod lab;
mod leases;
mod mesh;
mod peers;
mod property;
mod quarantine;
mod view;
mod zones;
