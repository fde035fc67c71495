"""Stand-ins for the demo, the tests and the benchmarks: guests, a VIM, an mtcAgent, a cluster on loopback."""
