"""Load on a server: clients that speak in real time, clients that misbehave, and how many streams it holds."""
