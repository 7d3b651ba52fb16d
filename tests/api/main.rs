//! The tests of the whole server, through its real router, sockets and database.
