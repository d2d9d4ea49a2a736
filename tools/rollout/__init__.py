"""Updates of a fleet, simulated: devices with the client that boxes have, one static web server, people who sign."""
