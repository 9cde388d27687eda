(function () {
  var told = document.currentScript.dataset, to = told.to, key = "portcullis " + told.key;
  try {
    if (location.hash.length > 1) sessionStorage.setItem(key, location.hash);
    if (told.step === "arrive") {
      if (to.indexOf("#") < 0) to += sessionStorage.getItem(key) || "";
      sessionStorage.removeItem(key);
    }
  } catch (error) { /* the browser does not let it: the page is found without its fragment */ }
  if (to) location.replace(to);
})();
