"""One module per subcommand of `ramify`, imported only when that subcommand runs."""
