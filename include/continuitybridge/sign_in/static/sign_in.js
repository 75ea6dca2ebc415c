// Put what stands behind the # of a mailed link into the form, and out of the address, where history would keep it.
"use strict";
const asked = document.querySelector("[data-token]");
const token = location.hash.slice(1);
if (asked && token) {
  const field = asked.querySelector("input");
  field.value = token;
  field.type = "hidden";
  asked.before(field);
  asked.remove();
  history.replaceState(null, "", location.pathname);
}
