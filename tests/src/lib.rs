//! Fixtures shared by the suites in this package.
