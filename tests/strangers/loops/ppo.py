"""Proximal policy optimisation in one file, in CleanRL's manner: rollouts of several environments, then minibatches."""

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

# fabric: from training import session

UPDATES, ENVS, HORIZON, EPOCHS, GAMMA, LAMBDA = 30, 2, 16, 2, 0.99, 0.95

torch.manual_seed(17)
np.random.seed(17)
envs = gym.vector.SyncVectorEnv(
    [lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1")) for _ in range(ENVS)]
)
actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
agent = nn.ModuleDict({"actor": actor, "critic": critic})
optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3, eps=1e-5)
obs, actions = torch.zeros(HORIZON, ENVS, 4), torch.zeros(HORIZON, ENVS)
logprobs, rewards, dones, values = (torch.zeros(HORIZON, ENVS) for _ in range(4))
global_step, returns_seen = 0, []
next_obs, next_done = torch.Tensor(envs.reset(seed=17)[0]), torch.zeros(ENVS)
# fabric: run = session(model=agent, opt=optimizer)
for update in range(UPDATES):  # fabric: for update in run.steps(UPDATES):
    optimizer.param_groups[0]["lr"] = (1 - update / UPDATES) * 3e-3
    for at in range(HORIZON):
        global_step += ENVS
        obs[at], dones[at] = next_obs, next_done
        with torch.no_grad():
            choice = Categorical(logits=actor(next_obs))
            action = choice.sample()
            values[at] = critic(next_obs).flatten()
        actions[at], logprobs[at] = action, choice.log_prob(action)
        seen, reward, ended, cut, infos = envs.step(action.numpy())
        next_obs, next_done = torch.Tensor(seen), torch.Tensor(np.logical_or(ended, cut))
        rewards[at] = torch.tensor(reward)
        if "episode" in infos:
            returns_seen += [float(each) for each in infos["episode"]["r"][infos["_episode"]]]
    with torch.no_grad():
        advantages, last = torch.zeros_like(rewards), 0
        for at in reversed(range(HORIZON)):
            going_on = 1.0 - (next_done if at == HORIZON - 1 else dones[at + 1])
            after = critic(next_obs).flatten() if at == HORIZON - 1 else values[at + 1]
            delta = rewards[at] + GAMMA * after * going_on - values[at]
            advantages[at] = last = delta + GAMMA * LAMBDA * going_on * last
        targets = advantages + values
    for _ in range(EPOCHS):
        order = np.random.permutation(HORIZON * ENVS)
        for part in np.split(order, 4):
            choice = Categorical(logits=actor(obs.reshape(-1, 4)[part]))
            ratio = (choice.log_prob(actions.reshape(-1)[part]) - logprobs.reshape(-1)[part]).exp()
            gain = advantages.reshape(-1)[part]
            policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(0.8, 1.2)).mean()
            value_loss = (critic(obs.reshape(-1, 4)[part]).flatten() - targets.reshape(-1)[part]).square().mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss - 0.01 * choice.entropy().mean()).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
    print("step", update, policy_loss.item(), flush=True)

torch.save({"agent": agent.state_dict(), "steps": global_step, "returns": returns_seen}, "final.pt")
