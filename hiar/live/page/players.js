// Videos side by side on one time line: each receives its fragments as they arrive, and none runs ahead of the others.

const KEPT = 12; // seconds of watched video kept in memory
const MOST = 60; // seconds kept in memory in all: a viewer who pauses for longer while others watch skips ahead
const APART = 0.06; // seconds that a video may be ahead of the slowest
const WAITING = 0.5; // seconds ahead at which it pauses

export function makePlayer(video, codec) {
  const media = new MediaSource();
  const waiting = [];
  let buffer = null;
  const player = { video, stalls: 0, fragments: 0, add, close, end };
  video.addEventListener("playing", () => { player.playing = true; });
  video.addEventListener("waiting", () => { player.stalls += Number(player.playing === true); });
  media.addEventListener("sourceopen", () => {
    URL.revokeObjectURL(video.src);
    buffer = media.addSourceBuffer(`video/mp4; codecs="${codec}"`);
    buffer.addEventListener("updateend", pump);
    pump();
  }, { once: true });
  video.src = URL.createObjectURL(media);

  function add(data) {
    waiting.push(data);
    player.fragments += 1;
    pump();
  }

  function pump() {
    if (!buffer || buffer.updating || media.readyState !== "open") return;
    const ranges = buffer.buffered;
    if (ranges.length && end() - ranges.start(0) > MOST) {
      buffer.remove(0, end() - KEPT);
    } else if (ranges.length && video.currentTime - ranges.start(0) > 2 * KEPT) {
      buffer.remove(0, video.currentTime - KEPT);
    } else if (waiting.length) {
      buffer.appendBuffer(waiting.shift());
    }
  }

  function end() {
    const ranges = video.buffered;
    return ranges.length ? ranges.end(ranges.length - 1) : 0;
  }

  function close() {
    buffer = null;
    video.removeAttribute("src");
    video.load();
  }

  return player;
}

// Start at the position of other viewers, as the server reports it, once every video has data there.
export function startTogether(players, from, fps) {
  const ready = players.every(({ video, end }) => video.buffered.length && end() > Math.max(from, video.buffered.start(0)) + 1 / fps);
  if (!ready) return false;
  const start = Math.max(from, ...players.map(({ video }) => video.buffered.start(0)));
  for (const player of players) {
    player.video.currentTime = start;
    play(player);
  }
  return true;
}

// Keep the players in step; returns the time that all of them have reached.
export function keepTogether(players, paused, lead) {
  const oldest = Math.max(...players.map(({ video }) => (video.buffered.length ? video.buffered.start(0) : 0)));
  if (!paused && players.some(({ video }) => video.currentTime < oldest)) {
    for (const { video } of players) video.currentTime = oldest;
  }
  for (const player of players) {
    const { video } = player;
    if (video.readyState < HTMLMediaElement.HAVE_FUTURE_DATA && !video.seeking) player.starved = true;
    else if (player.end() - video.currentTime >= lead / 2) player.starved = false;
  }
  const starved = players.some((player) => player.starved); // all wait once, for half the lead, instead of at every block
  const reached = Math.min(...players.map(({ video }) => video.currentTime));
  for (const player of players) {
    const ahead = player.video.currentTime - reached;
    player.video.playbackRate = ahead > APART ? 0.92 : 1;
    if (paused || starved || ahead > WAITING) {
      if (!player.video.paused) player.video.pause();
    } else if (player.video.paused && ahead < APART) {
      play(player);
    }
  }
  return reached;
}

function play(player) {
  player.video.play().catch(() => {}); // if the browser forbids autoplay, Pause and then Play start it
}
