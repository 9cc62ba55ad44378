"""Deep Q-learning in one file: an environment, a replay buffer, a target network and running figures of episodes."""

import collections
import random

import gymnasium as gym
import numpy as np
import torch
from torch import nn

# fabric: from training import session

STEPS, BATCH, GAMMA = 240, 16, 0.99

random.seed(23)
np.random.seed(23)
torch.manual_seed(23)


class ReplayBuffer:
    def __init__(self, size):
        self.rows = collections.deque(maxlen=size)

    def add(self, *row):
        self.rows.append(row)

    def sample(self, count):
        rows = random.sample(self.rows, count)
        return [torch.as_tensor(np.array(column), dtype=torch.float32) for column in zip(*rows, strict=True)]


class Figures:
    def __init__(self):
        self.episodes, self.returns, self.now = 0, [], 0.0

    def note(self, reward, done):
        self.now += float(reward)
        if done:
            self.episodes, self.now = self.episodes + 1, self.returns.append(self.now) or 0.0


env = gym.make("CartPole-v1")
seen, _ = env.reset(seed=23)
env.action_space.seed(23)
online, target = (nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)) for _ in range(2))
target.load_state_dict(online.state_dict())
optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
buffer, figures, epsilon = ReplayBuffer(100), Figures(), 1.0
# fabric: run = session(model=online, opt=optimizer)
for step in range(STEPS):  # fabric: for step in run.steps(STEPS):
    for _ in range(2):
        epsilon = max(0.05, epsilon * 0.995)
        if random.random() < epsilon:
            action = int(env.action_space.sample())
        else:
            action = int(online(torch.as_tensor(seen)[None]).argmax())
        after, reward, ended, cut, _ = env.step(action)
        buffer.add(seen, [action], [reward], after, [ended])
        figures.note(reward, ended or cut)
        seen = env.reset()[0] if ended or cut else after
    state, actions, rewards, then, dones = buffer.sample(min(BATCH, len(buffer.rows)))
    with torch.no_grad():
        wanted = rewards + GAMMA * target(then).max(1, keepdim=True).values * (1 - dones)
    loss = nn.functional.smooth_l1_loss(online(state).gather(1, actions.long()), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        target.load_state_dict(online.state_dict())
    print("step", step, loss.item(), flush=True)

torch.save({"online": online.state_dict(), "target": target.state_dict(), "returns": figures.returns}, "final.pt")
