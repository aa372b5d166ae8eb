// Comfort only: every page works without it. Nothing here makes markup out of text; rows that arrive
// were written and escaped by the server.
"use strict";

// A page that the browser kept alive to go back to may be of a session that is over: ask the server.
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

// Copy buttons beside whatever says what there is to copy.
for (const value of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "copy";
  button.setAttribute("aria-label", "copy " + value.dataset.copy);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(value.textContent.trim());
      button.textContent = "copied";
    } catch {
      button.textContent = "not allowed";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  value.after(button);
}

// How long ago or until, in the tooltip of each time and wherever a page asks for it.
const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const words = new Intl.RelativeTimeFormat("en", { numeric: "always" });
function relative(then) {
  const seconds = Math.round((then - Date.now()) / 1000);
  const [unit, size] = units.find(([, s]) => Math.abs(seconds) >= s) || units[3];
  return words.format(Math.trunc(seconds / size), unit);
}
function tellTimes(root) {
  for (const time of root.querySelectorAll("time")) {
    const text = relative(Date.parse(time.dateTime));
    time.title = text;
    if (time.hasAttribute("data-ago")) time.nextElementSibling.textContent = " (" + text + ")";
  }
}
tellTimes(document);
setInterval(() => tellTimes(document), 1000);

// The receipts of a revocation are fetched every two seconds until all verifiers have applied it, then every ten.
// The table is not replaced while it holds the focus.
const receipts = document.querySelector("[data-receipts]");
if (receipts) {
  const state = () => receipts.querySelector("[role=status]");
  const again = () => setTimeout(refresh, receipts.querySelector(".state.live") && !receipts.querySelector(".state.voided") ? 10000 : 2000);
  async function refresh() {
    if (document.hidden) return again();
    try {
      const answer = await fetch(receipts.dataset.receipts, { headers: { Accept: "text/html" }, redirect: "manual", cache: "no-store" });
      if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 404) {
        state().textContent = "The session has ended: reload this page to sign in.";
        return;
      }
      if (!answer.ok) throw new Error(answer.status);
      const now = new DOMParser().parseFromString(await answer.text(), "text/html");
      const words = now.querySelector("[role=status]").textContent;
      if (state().textContent !== words) state().textContent = words;
      if (!receipts.contains(document.activeElement)) {
        receipts.querySelector(".table")?.remove();
        const table = now.querySelector(".table");
        if (table) {
          receipts.append(table);
          tellTimes(receipts);
        }
      }
    } catch {
      // The last answer stays, and the next one is fetched.
    }
    again();
  }
  again();
}

// The live page asks again and again for what is newer, and puts it on top.
const rows = document.querySelector("[data-live]");
if (rows) {
  const status = document.querySelector("[data-live-status]");
  const pause = document.querySelector("[data-live-pause]");
  const most = 200;
  let paused = false;
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
    status.textContent = paused ? "paused" : "live";
    if (!paused) follow();
  });
  let asking = false;
  async function follow() {
    if (asking) return;
    asking = true;
    while (!paused) {
      try {
        const answer = await fetch(rows.dataset.live + "?after=" + rows.dataset.last, { headers: { Accept: "text/html" }, redirect: "manual", cache: "no-store" });
        if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 404) {
          status.textContent = "the session has ended: reload this page to sign in";
          break;
        }
        if (!answer.ok) throw new Error(answer.status);
        const text = await answer.text();
        rows.dataset.last = answer.headers.get("Deputy-Last-Entry") || rows.dataset.last;
        if (text.trim()) {
          const arrived = new DOMParser().parseFromString("<table><tbody>" + text + "</tbody></table>", "text/html").querySelectorAll("tbody > tr");
          for (const row of arrived) row.classList.add("fresh");
          rows.prepend(...arrived);
          while (rows.children.length > most) rows.lastElementChild.remove();
          tellTimes(rows);
        }
        status.textContent = paused ? "paused" : "live";
      } catch {
        status.textContent = "no answer: trying again";
        await new Promise((done) => setTimeout(done, 3000));
      }
    }
    asking = false;
  }
  follow();
}
