// Gamepads: the stick and the cross hold direction keys, buttons are commands.
const DEAD = 0.45;
const COMMANDS = { 1: "rewind", 2: "policy", 3: "same", 5: "step", 8: "new", 9: "pause" };
const GENTLE_BUTTON = 0;

export class Gamepads {
  /** `hold(key, down)` gets keys, `command(name)` commands. */
  constructor(hold, command) {
    this.hold = hold;
    this.command = command;
    this.down = new Set();
    this.buttons = new Set();
  }

  poll() {
    const pad = [...(navigator.getGamepads?.() ?? [])].find((p) => p && p.connected);
    if (!pad) { this.release(); return; }
    const [x = 0, y = 0] = pad.axes;
    const pressed = (i) => Boolean(pad.buttons[i]?.pressed);
    const now = {
      left: x < -DEAD || pressed(14), right: x > DEAD || pressed(15),
      up: y < -DEAD || pressed(12), down: y > DEAD || pressed(13), gentle: pressed(GENTLE_BUTTON),
    };
    for (const [key, down] of Object.entries(now)) {
      if (down !== this.down.has(key)) {
        this.hold(key, down);
        if (down) this.down.add(key); else this.down.delete(key);
      }
    }
    for (const [i, name] of Object.entries(COMMANDS)) {
      if (pressed(i) && !this.buttons.has(i)) this.command(name);
      if (pressed(i)) this.buttons.add(i); else this.buttons.delete(i);
    }
  }

  release() {
    for (const key of this.down) this.hold(key, false);
    this.down.clear();
  }
}
