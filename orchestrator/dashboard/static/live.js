// What was open, scrolled or focused stays so when a page renews itself; a silent server is said so.
"use strict";

function nameOf(element) {
  return element.tagName === "DETAILS"
    ? element.querySelector("summary").textContent
    : element.getAttribute("aria-label");
}

let kept = { open: new Set(), scrolled: new Map(), focused: null };

document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden) event.preventDefault();
});

document.addEventListener("htmx:beforeSwap", () => {
  const focused = document.activeElement;
  kept = {
    open: new Set(Array.from(document.querySelectorAll("details[open]"), nameOf)),
    scrolled: new Map(
      Array.from(document.querySelectorAll(".scroll"), (one) => [nameOf(one), [one.scrollLeft, one.scrollTop]]),
    ),
    focused: focused.tagName === "SUMMARY" ? nameOf(focused.parentElement) : nameOf(focused),
  };
});

document.addEventListener("htmx:afterSwap", () => {
  for (const one of document.querySelectorAll("details")) one.open = kept.open.has(nameOf(one));
  for (const one of document.querySelectorAll(".scroll")) {
    [one.scrollLeft, one.scrollTop] = kept.scrolled.get(nameOf(one)) ?? [0, 0];
  }
  if (kept.focused === null) return;
  for (const one of document.querySelectorAll("summary, [aria-label][tabindex]")) {
    const name = one.tagName === "SUMMARY" ? one.textContent : nameOf(one);
    if (name === kept.focused) one.focus({ preventScroll: true });
  }
});

for (const [event, isSilent] of [["htmx:sendError", true], ["htmx:responseError", true], ["htmx:afterSwap", false]]) {
  document.addEventListener(event, () => {
    document.getElementById("silent").hidden = !isSilent;
  });
}
