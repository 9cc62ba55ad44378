"""The product's promise, kept before your eyes: `make demo`.

On a real Ray cluster of simulated mixed nodes, a customer buys tokens, is quoted a price, and trains a small language
model twice at once: one run keeps its device busy, the other waits for its data half of the time, burns less, and borrows an
idle device that is reserved for inference. A job is refused for lack of tokens. Then the trained model is offered: serving
it takes the reserved device back, and the second run is evicted, saved, and goes on elsewhere, on devices of another type
and number, to the very same weights as the first. The model answers an ordinary OpenAI client, whose calls are paid from
the same balance. A program that comes with torch, and that nobody here wrote, runs as it is. The bill is printed, exported,
and verified offline by code that knows nothing of the fabric.

Everything goes through the doors that customers use; nothing here reaches behind them.
"""
