"""Threads that `meeting` takes for processes, with a coordination service of their own."""

import threading

import jax

from cmjax.base import meeting, sharding, shared_folder


class Service:
  """What a client of JAX's coordination service does with keys, in one process."""

  def __init__(self):
    self.keys, self.changed = {}, threading.Condition()

  def key_value_set(self, key, value, allow_overwrite=False):
    with self.changed:
      if key in self.keys and not allow_overwrite:
        raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
      self.keys[key] = value
      self.changed.notify_all()

  def blocking_key_value_get(self, key, timeout_in_ms):
    with self.changed:
      if not self.changed.wait_for(lambda: key in self.keys, timeout_in_ms / 1000):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
      return self.keys[key]

  def key_value_dir_get(self, key):
    return [(name, value) for name, value in self.keys.items() if name.startswith(key)]

  def key_value_delete(self, key):
    with self.changed:
      for name in [name for name in self.keys if name == key or name.startswith(f"{key}/")]:
        del self.keys[name]
      for name in [name for name in self.keys if key.endswith("/") and name.startswith(key)]:
        del self.keys[name]


class Processes:
  """`count` threads, each of which is a process to `meeting`."""

  def __init__(self, monkeypatch, count):
    self.service, self.count, self.me = Service(), count, threading.local()
    self.results, self.numbers = {}, {}
    monkeypatch.setattr(
      meeting, "_service", lambda: meeting.Service(self.service, self.me.index, count)
    )
    monkeypatch.setattr(sharding, "process", lambda: (self.me.index, count))
    monkeypatch.setattr(meeting.platform, "node", lambda: f"host{self.me.index}")
    monkeypatch.setattr(shared_folder.platform, "node", lambda: f"host{self.me.index}")

    class Numbers:  # of the meetings of one process
      def __getitem__(_, what):
        return self.numbers.get((self.me.index, what), 0)

      def __setitem__(_, what, number):
        self.numbers[self.me.index, what] = number

    monkeypatch.setattr(meeting, "_numbers", Numbers())
    meeting._left.clear()

  def run(self, *works):
    def work(index):
      self.me.index = index
      meeting.introduce()
      try:
        self.results[index] = works[index if len(works) > 1 else 0](index)
      except Exception as error:
        self.results[index] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(self.count)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(30)
      assert not thread.is_alive()
    return [self.results[i] for i in range(self.count)]
