"""The controller: observe the fleet, decide what it should be, act; one leader at a time."""
