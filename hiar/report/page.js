"use strict";
(() => {
  const videos = [...document.querySelectorAll("video")];
  const play = document.getElementById("play");
  const seek = document.getElementById("seek");
  const clock = document.getElementById("clock");
  const rate = document.getElementById("rate");
  if (!videos.length) return;
  document.querySelector(".player").hidden = false;

  const SLACK = 0.12; // seconds a video may deviate from the clock before it is corrected
  const length = () => leader.duration || 0;
  const due = (video, seconds) => (video.duration ? seconds % video.duration : 0);
  const moveTo = (seconds) => videos.forEach((video) => { video.currentTime = due(video, seconds); });
  const start = () => videos.forEach((video) => video.play().catch(() => {}));

  // The longest video is the clock: when it ends, all videos start again. Shorter ones loop until then.
  let leader = videos[0];
  let playing = true;
  const chooseLeader = () => {
    leader = videos.reduce((a, b) => ((b.duration || 0) > (a.duration || 0) ? b : a));
    leader.loop = false;
    leader.addEventListener("ended", () => { moveTo(0); if (playing) start(); });
  };
  const setPlaying = (on) => {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    if (on) {
      start();
    } else {
      videos.forEach((video) => video.pause());
      moveTo(leader.currentTime);
    }
  };
  const keepTogether = () => videos.forEach((video) => {
    if (video === leader || video.seeking || leader.ended) return;
    const off = Math.abs(video.currentTime - due(video, leader.currentTime));
    if (off > SLACK && video.duration - off > SLACK) video.currentTime = due(video, leader.currentTime);
  });
  const showTime = () => {
    seek.value = String((1000 * leader.currentTime) / (length() || 1));
    clock.textContent = `${leader.currentTime.toFixed(1)} s`;
    requestAnimationFrame(showTime);
  };

  play.addEventListener("click", () => setPlaying(!playing));
  rate.addEventListener("change", () => videos.forEach((video) => { video.playbackRate = Number(rate.value); }));
  seek.addEventListener("input", () => moveTo(Math.min((seek.value / 1000) * length(), length() - 0.01)));

  const known = videos.map((video) => video.readyState >= 1 ? null : new Promise((done) => {
    video.addEventListener("loadedmetadata", done, { once: true });
    video.addEventListener("error", done, { once: true });
  }));
  Promise.all(known).then(() => {
    chooseLeader();
    moveTo(0);
    setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    setInterval(keepTogether, 1000);
    showTime();
  });
})();
