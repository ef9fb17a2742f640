// What is open, ticked, scrolled or focused stays so when a page renews itself; if it cannot, it says so.
"use strict";

const SCROLLED = ".scroll, .timeline-rows";
const FOCUSED = "summary, a[href], button, input, [aria-label][tabindex]";

function nameOf(element) {
  if (element.tagName === "DETAILS") return element.querySelector("summary").textContent;
  if (element.tagName === "SUMMARY" || element.tagName === "BUTTON") return element.textContent;
  return element.getAttribute("href") ?? element.getAttribute("aria-label");
}

function problemOf(status) {
  if (status === 401) return "The dashboard wants its token: open the address that it has printed.";
  if (status === 404) return "This run is not there any more.";
  if (status > 0) return "The dashboard cannot read this just now.";
  return "The dashboard's server does not answer.";
}

let kept = { open: new Set(), ticked: new Set(), scrolled: new Map(), focused: null };

document.addEventListener("htmx:beforeRequest", (event) => {
  // Nobody looks, or somebody is about to copy what is selected.
  if (document.hidden || !getSelection().isCollapsed) event.preventDefault();
});

document.addEventListener("htmx:beforeSwap", () => {
  kept = {
    open: new Set(Array.from(document.querySelectorAll("details[open]"), nameOf)),
    ticked: new Set(Array.from(document.querySelectorAll("input:checked"), (one) => one.value)),
    scrolled: new Map(
      Array.from(document.querySelectorAll(SCROLLED), (one) => [nameOf(one), [one.scrollLeft, one.scrollTop]]),
    ),
    focused: document.activeElement.matches(FOCUSED) ? nameOf(document.activeElement) : null,
  };
});

document.addEventListener("htmx:afterSwap", () => {
  for (const one of document.querySelectorAll("details")) one.open = kept.open.has(nameOf(one));
  for (const one of document.querySelectorAll("input")) one.checked = kept.ticked.has(one.value);
  for (const one of document.querySelectorAll(SCROLLED)) {
    [one.scrollLeft, one.scrollTop] = kept.scrolled.get(nameOf(one)) ?? [0, 0];
  }
  const focused = Array.from(document.querySelectorAll(FOCUSED)).find((one) => nameOf(one) === kept.focused);
  if (kept.focused !== null && focused !== undefined) focused.focus({ preventScroll: true });
  document.getElementById("silent").hidden = true;
});

// A page that takes long to make is answered with the last one: ask for a new one at once.
document.addEventListener("DOMContentLoaded", () => {
  const live = document.getElementById("live");
  if (live !== null && !live.getAttribute("hx-trigger").startsWith("load")) htmx.trigger(live, "renew");
});

for (const event of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
  document.addEventListener(event, ({ detail }) => {
    const silent = document.getElementById("silent");
    silent.textContent = `${problemOf(detail.xhr?.status ?? 0)} What is below is as old as it says.`;
    silent.hidden = false;
  });
}
