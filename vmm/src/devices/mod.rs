//! Devices of the machine: each a front and a worker.
