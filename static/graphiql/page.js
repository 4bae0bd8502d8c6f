// GraphiQL on this server's schema, with nothing from elsewhere. By session, or by the token that
// the Headers tab names.
(function () {
  "use strict";
  var root = document.getElementById("graphiql");
  var url = root.dataset.url;
  var sockets = location.origin.replace(/^http/, "ws") + url;
  var fetcher = GraphiQL.createFetcher({
    url: url,
    fetch: function (address, options) {
      var headers = Object.assign({ "X-CSRFToken": root.dataset.csrf }, options.headers);
      return fetch(address, Object.assign({}, options, { headers: headers, credentials: "same-origin" }));
    },
    wsClient: graphqlWs.createClient({ url: sockets, lazy: true }),
  });
  var example =
    "# What may I see?\nquery Environments {\n  environments(first: 20) {\n    totalCount\n    edges {\n" +
    "      node { name namespace { name } current { number state apparentSize uniqueSize } }\n    }\n  }\n}\n";
  root.textContent = "";
  ReactDOM.createRoot(root).render(
    React.createElement(GraphiQL, { fetcher: fetcher, defaultQuery: example })
  );
})();
